"""Which pictures a YOLO data set has, and which label file belongs to each."""

import logging
import os
import re
import unicodedata
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ....choices import counted
from ...errors import DetectionDataError, Problems, SplitMissingError
from ...images import IMAGE_SUFFIXES, ImageFolder, files_below, is_hidden
from ...pipeline.pixels import DECODE_ERRORS
from ...splits import canonical_split, check_one_split
from .rows import looks_like_rows
from .yaml_file import YoloConfig

logger = logging.getLogger(__name__)

# Folders of pictures that show annotations, not scenes.
_NO_SCENES = frozenset(
    {"mask", "masks", "labels", "annotations", "segmentation", "segmentations", "segmentationclass",
     "segmentationobject", "depth", "thumbnails", "vis", "visualization", "runs"}
)  # fmt: skip
_LOOKED_AT, _FEW_COLOURS = 20, 64
_OF_A_SCENE = re.compile(r"[_\-.](mask|seg|segmentation|label|depth)s?$", re.IGNORECASE)


@dataclass(frozen=True)
class Pictures:
    """The images of a split, and where the rows of each are; None where it has no label file."""

    paths: list[str]
    label_paths: list[str | None]


def find_pictures(config: YoloConfig, split: str, label_dir: str, problems: Problems) -> Pictures:
    """The pictures of a split with their label files.

    Raises:
        SplitMissingError: there is no picture, or none has a label file.
        DetectionDataError: a folder cannot be read, or label files follow two layouts.
    """
    if label_dir in ("", ".", "..") or os.path.basename(label_dir) != label_dir:
        raise DetectionDataError(f"label_dir={label_dir!r}: give the name of a folder beside images, e.g. 'labels'")
    expected: dict[str, str] = {}
    listed = 0
    for entry in config.splits[split]:
        source = _resolve(config, entry, split)
        if source.is_file():
            found, home = _listed(config, source, problems), source.parent
        else:
            folder, home = ImageFolder(source), source
            found = sorted(folder.paths.values())
            for path in folder.broken:
                problems.add(f"{path}: is no file, but a link that leads nowhere or a device", "restore or delete it")
        listed += len(found)
        check_one_split(f"{config.file}: field {split}: {entry}", split, found, problems)
        for path in found:
            expected.setdefault(path, _label_path(Path(path), config.root, home, label_dir))
    if not expected and not problems.count:
        where = ", ".join(config.splits[split])
        raise SplitMissingError(f"{config.file}: field {split}: no images in {where}; correct the path")
    source = f"{config.file}, {split}"
    if listed > len(expected):
        twice = counted(listed - len(expected), "image", "is")
        logger.warning("%s: %s listed twice; each is taken once", source, twice)
    return _with_labels(config, source, expected, label_dir, problems)


def _resolve(config: YoloConfig, entry: str, split: str) -> Path:
    """A folder or file that the yaml names. Exports that say ../train/images mean train/images beside the yaml."""
    candidates = [base / name for name in _spellings(entry) for base in (config.root, config.file.parent)]
    if entry.startswith("../"):
        above = [name for entries in config.splits.values() for name in entries if name.startswith("../")]
        # One split that is here says where the others must be: a neighbour's folder is not ours.
        if any(_exists(config.root / _inside(name)) for name in above):
            candidates = [config.root / _inside(entry)]
    for path in candidates:
        if _exists(path):
            found = Path(os.path.normpath(path.absolute()))
            homes = [Path(os.path.normpath(base.absolute())) for base in (config.root, config.file.parent)]
            if entry.startswith("..") and not any(found.is_relative_to(home) for home in homes):
                logger.warning(
                    "%s: field %s: %r leads out of the folder of the yaml file, to %s; if these are not its pictures, "
                    "correct field %s or field path", config.file, split, entry, found, split,
                )  # fmt: skip
            listed, beside = ({base / name for name in _spellings(entry)} for base in (config.root, config.file.parent))
            if path in beside - listed:
                logger.warning(
                    "%s: field %s: %r is not in %s, which field path names; %s beside the file is taken",
                    config.file, split, entry, config.root, path,
                )  # fmt: skip
            return found
    looked = ", ".join(str(path) for path in dict.fromkeys(candidates))
    raise SplitMissingError(
        f"{config.file}: field {split}: {entry!r} is neither a folder of images nor a .txt file that lists them "
        f"(looked at {looked}); correct field {split} or field path"
    )


def _inside(entry: str) -> str:
    return re.sub(r"^(\.\./)+", "", entry)


def _exists(path: Path) -> bool:
    return "\0" not in str(path) and (path.is_dir() or path.suffix.lower() == ".txt" and path.is_file())


def _spellings(name: str) -> list[str]:
    return list(dict.fromkeys((name, name.replace("\\", "/"))))


def _listed(config: YoloConfig, file: Path, problems: Problems) -> list[str]:
    """The images that a file lists; they must be in the data set's folder or beside the list."""
    allowed = (config.root, Path(os.path.normpath(config.file.parent.absolute())), file.parent)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DetectionDataError(f"{file}: cannot be read ({error}); restore the list of images") from error
    paths = []
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name:
            continue
        bases = (file.parent, config.root)
        options = [Path(os.path.normpath(base / each)) for each in _spellings(name) for base in bases]
        path = next((option for option in options if "\0" not in name and option.is_file()), None)
        if path is None or path.suffix.lower() not in IMAGE_SUFFIXES:
            problems.add(f"{file}:{number}: {name!r} is no image file", "correct the list or restore the files")
        elif not any(path.is_relative_to(base) for base in allowed):
            problems.add(
                f"{file}:{number}: {name!r} is outside of {config.root}",
                "set field path of the yaml file to the folder that holds all images",
            )
        else:
            paths.append(str(path))
    return paths


def _label_path(image: Path, root: Path, home: Path, label_dir: str) -> str:
    # Folders above the data set may be called images too; they are none of its business.
    start = len(root.parts) if image.is_relative_to(root) else len(home.parts) - 2
    parts = list(image.with_suffix(".txt").parts)
    for index in range(len(parts) - 2, max(start, 1) - 1, -1):
        if parts[index] == "images":
            parts[index] = label_dir
            break
    return os.path.join(*parts)


class _LabelFolders:
    """The text files of folders, each folder read once."""

    def __init__(self) -> None:
        self._files: dict[str, dict[str, list[str]]] = {}

    def files(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._files:
            found: dict[str, list[str]] = {}
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name.lower().endswith(".txt") and not is_hidden(entry.name):
                            if not entry.is_file():
                                raise DetectionDataError(f"{entry.path}: is no file; restore or delete it")
                            found.setdefault(_spelling(entry.name), []).append(entry.path)
            except (FileNotFoundError, NotADirectoryError):
                found = {}
            except OSError as error:
                raise DetectionDataError(f"{folder}: cannot be read ({error.strerror}); make it readable") from error
            self._files[folder] = found
        return self._files[folder]

    def find(self, path: str) -> str | None:
        """A label file as it is on disk: the suffix may be .TXT, and accents may be composed differently."""
        folder, name = os.path.split(path)
        candidates = self.files(folder).get(_spelling(name), ())
        return path if path in candidates else candidates[0] if len(candidates) == 1 else None


def _spelling(name: str) -> str:
    stem, suffix = os.path.splitext(unicodedata.normalize("NFC", name))
    return stem + suffix.lower()


def _with_labels(
    config: YoloConfig, source: str, expected: dict[str, str], label_dir: str, problems: Problems
) -> Pictures:
    folders = _LabelFolders()
    labels = {path: folders.find(label) for path, label in expected.items()}
    for path in _no_scenes(labels, source):
        del labels[path]
    elsewhere = {path: _elsewhere(path, config, label_dir, folders) for path, label in labels.items() if label is None}
    elsewhere = {path: label for path, label in elsewhere.items() if label is not None}
    if elsewhere and len(elsewhere) == sum(label is None for label in labels.values()) == len(labels):
        logger.warning("%s: label files are not where %s would be, but beside, such as %s",
                       source, next(iter(expected.values())), next(iter(elsewhere.values())))  # fmt: skip
        labels |= elsewhere
    else:
        for path, label in elsewhere.items():
            problems.add(
                f"{path}: has no rows in {expected[path]}, but may have in {label}",
                "put all label files into one layout, folders labels beside images",
            )
    if all(label is None for label in labels.values()) and not problems.count:
        path, label = next(iter(expected.items()))
        raise SplitMissingError(
            f"{source}: none of {len(labels)} images has a label file, such as {label}; "
            "name the folder of the label files with label_dir=…"
        )
    counts = Counter(label for label in labels.values() if label is not None)
    for label in (label for label, count in counts.items() if count > 1):
        sharing = [path for path, other in labels.items() if other == label]
        problems.add(f"{label}: belongs to {sharing[0]} and to {sharing[1]}", "give pictures names that differ")
    repaired = sum(label is not None and label != expected[path] for path, label in labels.items())
    if repaired and not elsewhere:
        logger.warning("%s: found %s under a name in another case or composition", source,
                       counted(repaired, "label file"))  # fmt: skip
    _report_orphans(labels, source, folders)
    return Pictures(list(labels), list(labels.values()))


def _elsewhere(path: str, config: YoloConfig, label_dir: str, folders: _LabelFolders) -> str | None:
    """A file that may hold the rows of a picture, where other layouts have it."""
    image = Path(path)
    name = image.with_suffix(".txt").name
    places = (image.parent, image.parent / label_dir, image.parent.parent / label_dir, config.root / label_dir)
    for place in dict.fromkeys(map(str, places)):
        label = folders.find(os.path.join(place, name))
        if label is not None:
            with open(label, encoding="utf-8-sig", errors="replace") as file:
                if looks_like_rows(file.read(1 << 16)):
                    return label
    return None


def _no_scenes(labels: dict[str, str | None], source: str) -> list[str]:
    """Pictures without rows that show annotations: masks and their like. Others without rows are background."""
    stems = {os.path.splitext(os.path.basename(path))[0] for path, label in labels.items() if label is not None}
    if not stems:
        return []
    kinds = {_kind_of(path) for path in [path for path, label in labels.items() if label is not None][:_LOOKED_AT]}
    by_folder: dict[str, list[str]] = {}
    for path in labels:
        by_folder.setdefault(os.path.dirname(path), []).append(path)
    left_out = []
    for folder, paths in by_folder.items():
        names = {path: os.path.splitext(os.path.basename(path))[0] for path in paths}
        if any(labels[path] is not None for path in paths):
            derived = [p for p, stem in names.items() if labels[p] is None and _OF_A_SCENE.sub("", stem) in stems]
        else:
            same = sum(stem in stems or _OF_A_SCENE.sub("", stem) in stems for stem in names.values())
            # Pictures of the very names and of one kind may be those of a second camera.
            camera = stems.issuperset(names.values()) and _kind_of(paths[0]) in kinds
            drawn = same >= 0.5 * len(paths) and not camera
            no_scenes = os.path.basename(folder).lower() in _NO_SCENES or drawn
            derived = paths if no_scenes else []
            if not no_scenes and len(by_folder) > 1:
                logger.warning(
                    "%s: none of %s of %s has a label file; all are background",
                    source, counted(len(paths), "picture"), folder,
                )  # fmt: skip
        if derived:
            logger.warning(
                "%s: left out %s of %s, with annotations drawn in, such as %s; photographs need names of their own",
                source, counted(len(derived), "picture"), folder, os.path.basename(derived[0]),
            )  # fmt: skip
        left_out += derived
    return left_out


def _kind_of(path: str) -> tuple[str, str, bool]:
    """Suffix, mode, and whether there are few colours; other ones for what cannot be read, which others name."""
    suffix = os.path.splitext(path)[1].lower()
    with suppress(*DECODE_ERRORS), Image.open(path) as image:
        return suffix, image.mode, image.getcolors(_FEW_COLOURS) is not None
    return suffix, "", False


def _report_orphans(labels: dict[str, str | None], source: str, folders: _LabelFolders) -> None:
    known = {label for label in labels.values() if label is not None}
    places = sorted({os.path.dirname(label) for label in known})
    files = [path for place in places for paths in folders.files(place).values() for path in paths]
    # Folders below them in which no picture has its labels and that are no other split.
    for place in places:
        below = {os.path.dirname(path) for path in map(str, files_below(Path(place), ".txt"))} - set(places)
        parts = {folder: os.path.relpath(folder, place).split(os.sep) for folder in below}
        empty = [folder for folder in sorted(below) if not any(map(canonical_split, parts[folder]))]
        files += [path for folder in empty for paths in folders.files(folder).values() for path in paths]
    orphans = [
        path for path in dict.fromkeys(files) if path not in known and os.path.basename(path).lower() != "classes.txt"
    ]
    if orphans:
        logger.warning(
            "%s: %s left out, without an image, such as %s", source,
            counted(len(orphans), "label file", "is"), min(orphans),
        )  # fmt: skip
