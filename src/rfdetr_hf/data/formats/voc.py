"""Pascal VOC: one XML file per picture, in the layout of the challenge or beside the pictures.

Corners. The challenge counts pixels from 1 and includes the last one, so xmin=1, xmax=W is the complete width. Tools
differ in what they make of it: detectron2 takes 1 off xmin and ymin, datumaro takes the numbers as edges, torchvision
hands them out as they are; and many exporters write edges that count from 0. The numbers tell: no pixel has the number
0, and none a fraction. So the corners are those of the challenge, (xmin - 1, ymin - 1, xmax, ymax), unless more than
one box of a thousand has a corner that is 0 or a fraction; then they are edges. The log says which.
``bbox_format="xyxy"`` says that they are edges.

``difficult`` objects become crowds of the schema: training leaves them out, and scoring neither wants nor punishes a
detection there. COCO compares a detection with a crowd by the share of the detection that is inside, which is at least
the IoU that the challenge compares: what the challenge ignores is ignored, and so is what lies inside such an object.
"""

import logging
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from datasets import Dataset
from PIL import Image

from ...choices import counted
from ...values import as_flag, as_integer, shown
from ..annotations import ReadOptions
from ..errors import DetectionDataError, Problems, SplitMissingError
from ..images import ImageFolder, is_hidden
from ..masks import encode_mask
from ..splits import canonical_split
from . import Found, read_splits, warn_of_others
from .hub import is_saved
from .named import NamedObject, NamedSplit, finish_splits
from .xml_file import find_xml, has_element, number, read_xml, text_of

logger = logging.getLogger(__name__)

_ANNOTATION_FOLDERS = ("Annotations", "annotations", "annotations/xmls", "xmls")
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
# VOC 2012 itself has a few boxes with fractions among 40,000.
_FEW = 1e-3
_VOID = 255  # the border of objects in their masks
_LOOKED_AT = 20


@dataclass(frozen=True)
class VocLocation:
    """Where one split lies.

    Attributes:
        annotations: the folder of its XML files.
        image_folders: that may hold its pictures, likeliest first.
        masks: the folder of its object masks.
        list_file: names its pictures, one a line; None for all XML files of the folder.
    """

    annotations: Path
    image_folders: tuple[Path, ...]
    masks: Path
    list_file: Path | None = None


def find(root: Any, options: ReadOptions) -> Found | None:
    """A folder with ``Annotations/*.xml``, folders of splits with XML files, or XML files beside their pictures."""
    if not isinstance(root, str) or not os.path.isdir(root) or is_saved(Path(root)) or options.load.get("data_files"):
        return None
    folder = Path(root)
    splits = _listed_splits(folder, options.task == "segmentation")
    if not splits:
        children = [child for child in sorted(folder.iterdir()) if child.is_dir() and not is_hidden(child.name)]
        parts = {child.name: _locate(child) for child in children if canonical_split(child.name) is not None}
        splits = {name: location for name, location in parts.items() if location is not None}
        for child in children if splits else ():
            if child.name in parts and parts[child.name] is None:
                logger.warning("%s: has no XML files of Pascal VOC, so there is no such split", child)
    if not splits and (alone := _locate(folder)) is not None:
        splits = {"all": alone}
    if not splits:
        return None
    options.refuse(root, "is a Pascal VOC data set, which", "load", "label_dir")
    if isinstance(options.image_dir, str):
        image_dir = (folder / options.image_dir,)
        splits = {name: replace(location, image_folders=image_dir) for name, location in splits.items()}
    elif options.image_dir is not None:
        given = options.image_dir
        splits = {
            name: replace(at, image_folders=(folder / given[name],)) if name in given else at
            for name, at in splits.items()
        }
    return Found(root, "Pascal VOC", splits)


def near(folder: Path) -> str:
    """How near a folder comes to the layouts of Pascal VOC."""
    there = [name for name in (*_ANNOTATION_FOLDERS, "ImageSets", "JPEGImages") if (folder / name).is_dir()]
    listed = f"{', '.join(there)} {'is' if len(there) == 1 else 'are'} there, but " if there else ""
    return f"{listed}no XML file with the root 'annotation' in Annotations/, in folders of splits, or beside pictures"


def _locate(folder: Path) -> VocLocation | None:
    """The XML files of a folder, in a folder of their own or beside the pictures."""
    for annotations in (*(folder / name for name in _ANNOTATION_FOLDERS), folder):
        if annotations.is_dir() and any(
            has_element(file, "annotation") for file in find_xml(annotations, nested=annotations != folder)[:_LOOKED_AT]
        ):
            images = tuple(dict.fromkeys([*(folder / name for name in _IMAGE_FOLDERS), annotations, folder]))
            return VocLocation(annotations, images, folder / "SegmentationObject")
    return None


def _listed_splits(root: Path, masks: bool) -> dict[str, VocLocation]:
    """The splits that ``ImageSets/`` lists, for pictures in which objects have masks those of Segmentation."""
    whole = _locate(root)
    if whole is None or whole.annotations == root:
        return {}
    kinds = ("Segmentation", "Main") if masks else ("Main", "Segmentation")
    aside: list[Path] = []
    for folder in [root / "ImageSets" / kind for kind in kinds] + [root / "ImageSets"]:
        files = [file for file in sorted(folder.glob("*.txt")) if not is_hidden(file.name)]
        if lists := {file.stem: replace(whole, list_file=file) for file in files if not _is_of_a_class(file, whole)}:
            return lists
        aside += files
    if aside:
        raise DetectionDataError(
            f"{root}: its lists say of each picture whether a class is in it ({aside[0].name}), and none names the "
            "pictures of a split; write one such as ImageSets/Main/train.txt, with a picture in each line"
        )
    return {}


def _is_of_a_class(file: Path, location: VocLocation) -> bool:
    """Whether a list says of each picture if it shows a class, as aeroplane_train.txt does: "2008_000008 -1"."""
    lines = [line for line in _lines(file) if line]
    if not lines or not all(re.fullmatch(r"\S+\s+(-1|0|1)", line) for line in lines):
        return False
    # "frame 0" is a name of a picture too.
    return not set(lines) & set(_xml_files(location.annotations))


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DetectionDataError(f"{file}: cannot be read ({error}); restore the list of pictures") from error


def read(found: Found, splits: Mapping[str, VocLocation], options: ReadOptions) -> dict[str, Dataset]:
    """Read splits; the label table is the sorted names of the first one's objects, or `class_names`.

    Raises:
        DetectionDataError: files that are no XML, pictures that are missing, or objects without a name or a box.
    """
    faults = {name: Problems(f"{found.source}, {name}") for name in splits}
    folders: dict[Path, ImageFolder] = {}
    used: dict[Path, set[Path]] = {}

    def read_split(name: str, location: VocLocation) -> NamedSplit:
        files = _annotation_files(location, faults[name])
        used.setdefault(location.annotations, set()).update(files.values())
        return _read_split(location, files, folders, faults[name], options)

    read = read_splits(splits, options, read_split)
    # All XML files of a folder are its split, where no list says otherwise.
    unread = {at.annotations for at in found.splits.values()} - {at.annotations for at in splits.values()}
    read_or_not = set().union(unread, *used.values())
    warn_of_others(found, splits, read_or_not, ".xml", lambda file: has_element(file, "annotation"))
    for problems in faults.values():
        problems.raise_if_any()
    if options.bbox_format is None:
        _settle_corners(read, found.source)
    return finish_splits(read, options, {name: faults[name] for name in read}, written=options.bbox_format or "xyxy")


def _settle_corners(splits: Mapping[str, NamedSplit], source: str) -> None:
    """Turn corners that count pixels from 1 into edges; the boxes of all splits decide together."""
    boxes = np.array([each.box for split in splits.values() for each in split.objects]).reshape(-1, 4)
    odd = ((boxes == 0) | (boxes != np.round(boxes))).any(axis=1)
    if odd.sum() > _FEW * len(boxes):
        logger.info(
            "%s: corners are edges that count from 0: %d of %d boxes have a corner that is 0 or a fraction",
            source, odd.sum(), len(boxes),
        )  # fmt: skip
        return
    logger.info("%s: corners count pixels from 1, as in Pascal VOC; bbox_format='xyxy' takes them as edges", source)
    for split in splits.values():
        split.objects = [
            replace(each, box=(each.box[0] - 1, each.box[1] - 1, each.box[2], each.box[3])) for each in split.objects
        ]


def _xml_files(annotations: Path) -> dict[str, Path]:
    """The XML files of a folder and those below it, by their names in it without suffix: "a", "batch/b"."""
    return {
        file.relative_to(annotations).with_suffix("").as_posix(): file for file in find_xml(annotations, nested=True)
    }


def _annotation_files(location: VocLocation, problems: Problems) -> dict[str, Path]:
    """The XML files of a split by their names in the folder of annotations.

    Raises:
        DetectionDataError: a folder below has the name of a split.
        SplitMissingError: none of the pictures of its list has an XML file.
    """
    inside = _xml_files(location.annotations)
    if location.list_file is None:
        parts = {name.split("/")[0]: name for name in reversed(inside) if "/" in name}
        if of_split := next((part for part in parts if canonical_split(part) is not None), None):
            raise DetectionDataError(
                f"{location.annotations}: its folder {of_split} has the name of a split, but no list says which "
                f"pictures a split has, so that all would be one; list them in ImageSets/Main/{of_split}.txt, such as "
                f"{parts[of_split]!r}, or move each split with its pictures into a folder of its own, such as train/"
            )
        return inside
    # A name may hold blanks; what else stands in a line does not count.
    names = []
    for line in filter(None, _lines(location.list_file)):
        spellings = [re.sub(r"\.(xml|jpe?g|png)$", "", each, flags=re.IGNORECASE) for each in (line, line.split()[0])]
        names.append(next((each for each in spellings if each in inside), spellings[0]))
    distinct = list(dict.fromkeys(names))
    if len(distinct) < len(names):
        logger.warning(
            "%s: %s listed twice; each is taken once",
            location.list_file, counted(len(names) - len(distinct), "picture", "is"),
        )  # fmt: skip
    files = {name: inside[name] for name in distinct if name in inside}
    if not files:
        raise SplitMissingError(
            f"{location.list_file}: none of its {len(distinct)} pictures has an XML file in {location.annotations}; "
            "restore the files, or correct the list"
        )
    problems.add_all(
        (f"{location.list_file}: {name!r} has no {location.annotations / name}.xml" for name in distinct
         if name not in inside),
        "restore the XML file (without objects for background), or take the picture out of the list",
    )  # fmt: skip
    return files


class _Pictures:
    """The pictures of one or more folders by the names of their XML files."""

    def __init__(self, candidates: tuple[Path, ...], stems: Collection[str], folders: dict[Path, ImageFolder]) -> None:
        present = [path for path in candidates if path.is_dir()]
        # By their names in the folder, without suffix.
        by_stem: dict[Path, dict[str, list[str]]] = {path: {} for path in present}
        for path in present:
            folders[path] = folders.get(path) or ImageFolder(path)
            for relative, picture in folders[path].paths.items():
                by_stem[path].setdefault(os.path.splitext(relative)[0], []).append(picture)
        ranked = [(-sum(stem in by_stem[path] for stem in stems), order) for order, path in enumerate(present)]
        best = present[min(ranked)[1]] if ranked else None
        self.looked = ", ".join(str(path) for path in candidates)
        self.folder = folders[best] if best is not None else None
        self.stems = by_stem[best] if best is not None else {}

    def find(self, stem: str, written: str | None) -> tuple[str | None, str]:
        """The picture of an XML file, and what is wrong where there is none.

        It has the name of the XML file, and lies in a folder of the same name. What the field filename says is often
        an earlier name; only where no picture has the name of the XML file does it count.
        """
        beside = [os.path.join(os.path.dirname(stem), os.path.basename(written)), written] if written else []
        found = [self.folder.resolve([name]).paths[0] for name in beside] if self.folder is not None else []
        named = next(filter(None, found), None)
        own = self.stems.get(stem, [])
        if len(own) > 1:
            own = [path for path in own if path == named] or own
        if len(own) > 1:
            return None, f"several pictures have its name: {', '.join(map(os.path.basename, own))}"
        if own and named is not None and named != own[0]:
            return (
                None,
                f"field filename is {shown(written)}, but {own[0]} has the name of the XML file, and both exist",
            )
        path = own[0] if own else named
        return path, "" if path else f"its picture is missing in {self.looked} (field filename: {shown(written)})"


def _read_split(
    location: VocLocation,
    files: Mapping[str, Path],
    folders: dict[Path, ImageFolder],
    problems: Problems,
    options: ReadOptions,
) -> NamedSplit:
    split = NamedSplit(problems.source)
    pictures = _Pictures(location.image_folders, files, folders)
    renamed = 0
    taken: dict[str, Path] = {}
    for stem, file in files.items():
        root = read_xml(file)
        if root.tag != "annotation":
            problems.add(f"{file}: the root is {shown(root.tag)}, not 'annotation'", "move other files elsewhere")
            continue
        written = text_of(root, "filename")
        path, fault = pictures.find(stem, written)
        if path is not None and (other := taken.setdefault(path, file)) != file:
            path, fault = None, f"{other} has the same picture, {path}"
        if path is None:
            problems.add(
                f"{file}: {fault}", "restore the picture, delete the XML file, or name the folder: image_dir=…"
            )
        elif written is not None and Path(written.replace("\\", "/")).stem != Path(path).stem:
            renamed += 1
        size = _size(root, file, problems)
        name = os.path.relpath(path, pictures.folder.root) if path and pictures.folder is not None else stem
        image = split.add_picture(path or "", name.replace(os.sep, "/"), size if path else (1, 1))
        first = len(split.objects)
        _read_objects(root, file, image, split, problems)
        if options.task == "segmentation" and path:
            _add_masks(split, image, first, location.masks / f"{stem}.png", problems)
    unlisted = [] if location.list_file is not None else [
        stem for stem in sorted(set(pictures.stems) - set(files)) if not stem.startswith("Segmentation")
    ]  # fmt: skip
    if unlisted:
        logger.warning(
            "%s: %s left out, without an XML file, such as %s; to train on such as background, write one without "
            "objects", split.source, counted(len(unlisted), "picture", "is"), ", ".join(unlisted[:3]),
        )  # fmt: skip
    if renamed:
        logger.warning(
            "%s: the field filename of %s names another picture, which is not there; the picture with the "
            "name of the XML file is taken", split.source, counted(renamed, "XML file"),
        )  # fmt: skip
    return split


def _size(root: ElementTree.Element, file: Path, problems: Problems) -> tuple[int, int] | None:
    texts = [text_of(root, f"size/{side}") for side in ("width", "height")]
    sides = [None if text is None else as_integer(text.removesuffix(".0")) for text in texts]
    for field, text, side in zip(("width", "height"), texts, sides, strict=True):
        if text is not None and (side is None or side < 0):
            problems.add(f"{file}: field size/{field} is {shown(text)}, no size", "correct it, or leave size out")
    # Some tools write 0 for what they do not know.
    return (sides[0], sides[1]) if sides[0] and sides[1] and min(sides[0], sides[1]) > 0 else None


def _read_objects(root: ElementTree.Element, file: Path, image: int, split: NamedSplit, problems: Problems) -> None:
    remedy = "write name and bndbox with xmin, ymin, xmax, ymax in pixels, or delete the object"
    for index, each in enumerate(root.findall("object"), start=1):
        place = f"{file}: object {index}"
        name, boxes, difficult = text_of(each, "name"), each.findall("bndbox"), as_flag(text_of(each, "difficult"))
        if name is None:
            problems.add(f"{place}: field name is missing or empty", remedy)
        if difficult is None:
            problems.add(f"{place}: field difficult is {shown(text_of(each, 'difficult'))}", "write it as 0 or 1")
        if len(boxes) != 1:
            other = " (it has robndbox, a turned box)" if each.find("robndbox") is not None else ""
            fault = f"stands {len(boxes)} times" if boxes else f"is missing{other}"
            problems.add(f"{place}: field bndbox {fault}", remedy)
            continue
        left, top, right, bottom = (
            number(text_of(boxes[0], corner), place, f"bndbox/{corner}", problems, remedy) for corner in _CORNERS
        )
        polygon = each.find("polygon")
        corners = None if polygon is None else _polygon(polygon, place, problems)
        mask = None if corners is None else [corners]
        split.objects.append(NamedObject(image, name or "", (left, top, right, bottom), place, bool(difficult), mask))


def _polygon(element: ElementTree.Element, place: str, problems: Problems) -> list[float] | None:
    """x1, y1, x2, y2, … as Roboflow writes them; None where there is no corner."""
    remedy = "write a polygon as x1, y1, x2, y2, … in pixels"
    corners: list[float] = []
    for index in range(1, len(element) // 2 + 1):
        for axis in "xy":
            corners.append(
                number(text_of(element, f"{axis}{index}"), place, f"polygon/{axis}{index}", problems, remedy)
            )
    return corners or None


def _add_masks(split: NamedSplit, image: int, first: int, file: Path, problems: Problems) -> None:
    """The masks of ``SegmentationObject``: pixels of the number n belong to the n-th object from `first` on."""
    if not file.is_file():
        return
    try:
        with Image.open(file) as picture:
            numbers = np.asarray(picture) if picture.mode in ("P", "L") else None
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        problems.add(f"{file}: cannot be decoded ({error})", "restore the mask")
        return
    size = split.sizes[image]
    if numbers is None or (size is not None and numbers.shape != size[::-1]):
        what = "has several channels" if numbers is None else f"has the shape {numbers.shape[::-1]}, its picture {size}"
        problems.add(f"{file}: {what}", "write masks as numbers of objects, in the size of the picture")
        return
    own = range(first, len(split.objects))
    last = max((int(value) for value in np.unique(numbers) if value != _VOID), default=0)
    if last > len(own):
        problems.add(
            f"{file}: has the object {last}, but the XML file has {len(own)}", "number the masks as the objects"
        )
        return
    for place, index in enumerate(own, start=1):
        if (pixels := numbers == place).any():
            split.objects[index] = replace(split.objects[index], mask={"rle": encode_mask(pixels)})
