"""XML files of annotations, read without anything that a document type could bring in."""

import math
import os
import re
from pathlib import Path
from xml.etree import ElementTree

from ...values import shown
from ..errors import DetectionDataError, Problems
from ..images import files_below

_MOST_BYTES = 4 << 30


class _NoDoctype(ElementTree.TreeBuilder):
    # The parser calls it where a document type begins: before an entity is declared, so that none is ever expanded.
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError(f"it declares the document type {shown(name)}, which may hide entities")


def _unreadable(path: str | os.PathLike[str], error: Exception) -> DetectionDataError:
    return DetectionDataError(
        f"{os.fspath(path)}: cannot be read as XML ({error}); export the annotations again, without DOCTYPE"
    )


def read_xml(path: str | os.PathLike[str]) -> ElementTree.Element:
    """The root element of a file.

    Raises:
        DetectionDataError: the file cannot be read, is no XML, or declares a document type (and with it entities,
            which may grow without end or read other files).
    """
    try:
        if os.path.getsize(path) > _MOST_BYTES:
            raise ValueError(f"it has {os.path.getsize(path)} bytes, more than {_MOST_BYTES}")
        # By its bytes: the encoding is what the first line of the file says.
        return ElementTree.parse(path, ElementTree.XMLParser(target=_NoDoctype())).getroot()
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise _unreadable(path, error) from error


def attributes_of(path: Path, element: str, attribute: str) -> set[str | None]:
    """The values that an attribute has in the elements of a name; None for elements without it.

    The file is gone through, and nothing of it is kept: it may be large.

    Raises:
        DetectionDataError: as `read_xml`.
    """
    found: set[str | None] = set()

    class Values(_NoDoctype):
        def start(self, tag: str, attrs: dict[str, str]) -> None:
            if tag == element:
                found.add(attrs.get(attribute))

        def end(self, tag: str) -> None:
            pass

        def data(self, data: str) -> None:
            pass

        def close(self) -> None:
            pass

    try:
        with open(path, "rb") as stream:
            parser = ElementTree.XMLParser(target=Values())
            while block := stream.read(1 << 20):
                parser.feed(block)
            parser.close()
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise _unreadable(path, error) from error
    return found


def has_element(file: Path, name: str) -> bool:
    """Whether an element of a name begins near the start of a file, which need not be XML.

    Raises:
        DetectionDataError: the file cannot be read.
    """
    try:
        with open(file, "rb") as stream:
            return re.search(rb"<%s[\s>]" % name.encode(), stream.read(1 << 14)) is not None
    except OSError as error:
        raise DetectionDataError(f"{file}: cannot be read ({error.strerror or error}); make it readable") from error


def find_xml(folder: Path, *, nested: bool = False) -> list[Path]:
    """The XML files of a folder, without hidden ones, sorted; with `nested` those of the folders below it too."""
    if nested:
        return files_below(folder, ".xml")
    return [file for file in sorted(folder.glob("*.[xX][mM][lL]")) if not file.name.startswith(".") and file.is_file()]


def text_of(element: ElementTree.Element, path: str) -> str | None:
    """The text of a child, without blanks around it; None where there is no such child or no text in it."""
    text = element.findtext(path)
    return (text.strip() or None) if text is not None else None


def number(text: str | None, place: str, field: str, problems: Problems, remedy: str) -> float:
    """A finite number; NaN where there is none, and then the fault is noted.

    Args:
        text: what the file says; None for a field that it lacks.
        place: file and object, for messages.
        field: for messages.
        problems: collects the fault.
        remedy: what to do about it.
    """
    try:
        value = float(text if text is not None else "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (text is not None and "_" in text):
        fault = "is missing or empty" if text is None else f"is {shown(text)}, no number"
        problems.add(f"{place}: field {field} {fault}", remedy)
        return math.nan
    return value
