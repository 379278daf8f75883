"""Image files below a folder, and their names."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np

from .errors import DetectionDataError, SplitMissingError
from .splits import canonical_split

# All that is trained on, and predicted on.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2"}
)
# What operating systems and tools leave in a user's folders.
_SYSTEM = frozenset({"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__"})
# A tree of so many folders without images is no data set (a system's /proc, a home).
_MAX_BARREN_FOLDERS = 20_000
_PROBES = 20
_EXAMPLES = 3
_NAME_FOLDER = "name the folder with image_dir=…"


class Resolved(NamedTuple):
    """Where the files of a list are.

    Attributes:
        paths: one per name, None for a file that is not there.
        repairs: how names were read differently than they are written -> how many.
        stripped: how many leading folders of the names are not there.
    """

    paths: list[str | None]
    repairs: Counter[str]
    stripped: int = 0

    @property
    def missing(self) -> int:
        """How many names lead nowhere."""
        return sum(path is None for path in self.paths)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden (``.git``, ``._a.jpg``) or a system's (``__MACOSX``)."""
    return name.startswith(".") or name.lower() in _SYSTEM


def walk_files(
    root: str | os.PathLike[str], skip: Callable[[str], None] | None = None
) -> Iterator[tuple[str, str, bool]]:
    """The files below a folder, without hidden and system ones; links are followed, each folder comes once.

    Args:
        root: the folder.
        skip: is called for a folder below it that cannot be read, which is then left out; None: an error.

    Yields:
        the path relative to `root` with forward slashes, the path, and whether it is a regular file (a link that leads
        nowhere and a pipe are none).

    Raises:
        DetectionDataError: a folder cannot be read, or there is a tree of folders without end.
    """
    seen: set[tuple[int, int]] = set()
    stack = [("", os.fspath(root))]
    barren = 0
    while stack:
        prefix, folder = stack.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
            # By path, not by entry: of a link in a circle they say no, where an entry raises.
            kinds = [(e, os.path.isdir(e.path), os.path.isfile(e.path)) for e in ordered if not is_hidden(e.name)]
        except OSError as error:
            problem = f"{folder}: cannot be read ({error.strerror or error})"
            if skip is None or not prefix:
                raise DetectionDataError(f"{problem}; make it readable, or take it out of the data") from error
            skip(problem)
            continue
        barren += 1
        for entry, is_dir, is_file in kinds:
            relative = f"{prefix}{entry.name}"
            if is_dir:
                stack.append((f"{relative}/", entry.path))
                continue
            if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                barren = 0
            yield relative, entry.path, is_file
        if barren > _MAX_BARREN_FOLDERS:
            raise DetectionDataError(
                f"{os.fspath(root)}: {barren} folders in a row hold no image; give the folder of the data set itself"
            )


def files_below(root: Path, suffix: str) -> list[Path]:
    """The regular files of a folder and of those below it whose names end in `suffix`, in any case, sorted.

    Raises:
        DetectionDataError: as `walk_files`.
    """
    return sorted(Path(path) for name, path, regular in walk_files(root) if regular and name.lower().endswith(suffix))


class ImageFolder:
    """The image files below one folder, found by the names that an annotation file gives them.

    Only the listed path counts. It may differ from the path on disk in what tools change: the case of the suffix, the
    composition of accents, %20 for a blank, backslashes, blanks around it, or leading folders that all names of a list
    share (an absolute path of another machine) or, where names stay distinct and keep a folder, do not share
    (`images/v1/patch0`, `images/v2/patch16` of Objects365). Each of these counts only where it leads to one file.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.paths: dict[str, str] = {}
        self.broken: list[str] = []
        # path -> the name by which a list has it, and how many folders of that are not there
        self.listed: dict[str, tuple[str, int]] = {}
        for relative, path, regular in walk_files(self.root):
            if os.path.splitext(relative)[1].lower() in IMAGE_SUFFIXES:
                if regular:
                    self.paths[relative] = path
                else:
                    self.broken.append(path)

    @cached_property
    def _by_spelling(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for relative in self.paths:
            found.setdefault(_spelling(relative), []).append(relative)
        return found

    def find(self, file_name: str) -> str | None:
        """The path of a file by its name as it is written, or None."""
        relative = os.path.normpath(file_name).replace(os.sep, "/")
        if relative in self.paths:
            return self.paths[relative]
        direct = os.path.join(self.root, relative)
        return direct if "\0" not in direct and os.path.isfile(direct) else None

    def resolve(self, names: Sequence[str]) -> Resolved:
        """The paths of all files of a list, after the repairs that lead to one file each."""
        best = self._without_prefix(names, 0)
        if best.missing and names:
            parts = [_spelling(name).split("/") for name in names]
            shared = len(os.path.commonprefix([each[:-1] for each in parts]))
            for count in range(1, max(shared + 1, min(map(len, parts)) - 1)):
                if count > shared and len({"/".join(each[count:]) for each in parts}) < len(set(map(_spelling, names))):
                    break
                found = self._without_prefix(names, count)
                if found.missing < best.missing:
                    best = found
        return best

    def _without_prefix(self, names: Sequence[str], count: int) -> Resolved:
        prefixes = {"/".join(_spelling(name).split("/")[:count]) for name in names if count}
        prefix = " or ".join(map(repr, sorted(prefixes)[:_EXAMPLES]))
        repairs: Counter[str] = Counter()
        paths: list[str | None] = []
        for name in names:
            if not count and (path := self.find(name)) is not None:
                paths.append(path)
                continue
            spelling = "/".join(_spelling(name).split("/")[count:])
            candidates = self._by_spelling.get(spelling, ())
            paths.append(self.paths[candidates[0]] if len(candidates) == 1 else None)
            if len(candidates) == 1:
                repairs[f"without the leading {prefix}" if count else _difference(name, candidates[0])] += 1
        return Resolved(paths, repairs, count)

    def of_same_name(self, file_name: str) -> str | None:
        """A file of this base name in another folder, to mention; it is not the one that is listed."""
        base = _spelling(file_name).rsplit("/", 1)[-1]
        return next((relative for relative in self.paths if _spelling(relative).rsplit("/", 1)[-1] == base), None)

    def unlisted(self, used: Iterable[str]) -> list[str]:
        """The files, relative to the folder, whose paths are not among `used`."""
        known = set(used)
        return sorted(relative for relative, path in self.paths.items() if path not in known)


def choose_folder(
    source: str, names: Sequence[str], candidates: Sequence[Path], folders: dict[Path, ImageFolder]
) -> tuple[ImageFolder, Resolved]:
    """The candidate that holds most of the images of an annotation file.

    Args:
        source: the annotation file, for messages.
        names: of the images, as the file writes them.
        candidates: folders, likeliest first.
        folders: keeps what has been read for the next split.

    Raises:
        SplitMissingError: none of the images is in any of them.
        DetectionDataError: two of them have other files for the same names, or a file that another name already means.
    """
    probes = [names[int(i)] for i in np.linspace(0, len(names) - 1, min(_PROBES, len(names)), dtype=int)]
    present = [path for path in candidates if path.is_dir()]
    ranked: list[tuple[int, int, int, int]] = []
    found: list[list[str | None]] = []
    for order, path in enumerate(present):
        folder = folders[path] = folders.get(path) or ImageFolder(path)
        resolved = folder.resolve(probes)
        # The more of a name is left out, the less it says which file is meant.
        ranked.append((resolved.missing, resolved.stripped, sum(resolved.repairs.values()), order))
        found.append(resolved.paths)
        if not resolved.missing and not resolved.repairs:
            break
    if not ranked or (probes and min(ranked)[0] == len(probes)):
        looked = ", ".join(str(path) for path in candidates)
        others = [folders[path].of_same_name(name) for path in present[-1:] if path in folders for name in probes]
        others = [other for other in others if other]
        hint, first = f" (a file of this name is {others[0]})" if others else "", names[0] if names else "it lists none"
        remedy = _NAME_FOLDER
        if len(of := {os.path.dirname(other) for other in others}) > 1:
            remedy = "write one annotation file for each folder"
            if len({canonical_split(folder.replace("/", " ")) for folder in of} - {None}) < 2:
                remedy = f"write the folders into file_name, such as {others[0]!r}, or {remedy.removeprefix('write ')}"
        raise SplitMissingError(f"{source}: none of its images ({first}, …) is in {looked}{hint}; {remedy}")
    best = min(ranked)
    # Of folders in which the names lead to the same files the likeliest.
    folder = folders[present[found.index(found[best[-1]])]]
    equal = [found[order] for *rank, order in ranked if best[1] and rank[:2] == [*best[:2]]]
    for same in zip(*equal, strict=True):
        if len(differing := {os.path.realpath(path): path for path in same if path}) > 1:
            raise DetectionDataError(
                f"{source}: one of its images may be {' or '.join(differing.values())}; {_NAME_FOLDER}"
            )
    resolved = folders[present[best[-1]]].resolve(names)  # by the names of which least is left out
    taken = {path: entry for each in folders.values() for path, entry in each.listed.items()}
    for name, path in zip(names, resolved.paths, strict=True):
        other, stripped = taken.get(path or "", (name, 0))
        if other != name and (stripped or resolved.stripped):
            raise DetectionDataError(
                f"{source}: {name} and the {other} of another split both lead to {path}, without the leading folders; "
                "restore the missing folder, or if they are one picture write one name"
            )
    folder.listed |= {path: (name, resolved.stripped) for name, path in zip(names, resolved.paths, strict=True) if path}
    return folder, resolved


def _spelling(name: str) -> str:
    """What names that tools write differently have in common."""
    text = unicodedata.normalize("NFC", unquote(name.strip())).replace("\\", "/")
    stem, suffix = os.path.splitext(text)
    parts = [part for part in (stem + suffix.lower()).split("/") if part not in ("", ".")]
    return "/".join(parts)


def _difference(name: str, found: str) -> str:
    changes = {
        "with slashes for backslashes": name.replace("\\", "/"),
        "without blanks around it": name.strip(),
        "with %20 and its like decoded": unquote(name),
        "with its suffix in another case": os.path.splitext(name)[0] + os.path.splitext(found)[1],
    }
    if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", found):
        return "with accents composed differently"
    single = [words for words, to in changes.items() if to != name and os.path.normpath(to) == found]
    return single[0] if single else "after several repairs"
