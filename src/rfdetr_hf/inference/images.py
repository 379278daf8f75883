"""Images to look at: files, folders, the frames of videos and the rows of data sets."""

import glob
import hashlib
import logging
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from PIL import Image

from ..choices import install_hint
from ..data.errors import DetectionDataError
from ..data.formats.hub import has_tables, open_tables
from ..data.images import IMAGE_SUFFIXES, walk_files
from ..data.pipeline.pixels import decode_image, pages_of
from ..decoding import PILLOW, require_decoder
from ..options import without_secrets

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"})
_FRAME = re.compile(r"-\d{6,}$")
_ADDRESS = re.compile(r"[a-zA-Z][\w+.-]+:/+\w")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# A damaged video may say any number of frames: so many in a row that cannot be read are its end.
_FAILURES_IN_A_ROW = 100
# Bytes of a file name, of which systems take 255: the rest is for numbers and suffixes.
_LONGEST_NAME = 200


class NamedImage(NamedTuple):
    """An upright RGB image.

    Attributes:
        name: path under what was asked for, unique among all that was asked for, without regard to case. It has no
            suffix, and no folder above, but where files would share it; frames of a video end in their number. Parts
            are `bounded`.
        source: the file it comes from, or the data set as it was asked for.
        image: the pixels.
        frame: its number in a video, from 0; None for others.
        row: its number in a split of a data set, from 0; None for others.
    """

    name: str
    source: Path
    image: Image.Image
    frame: int | None = None
    row: int | None = None

    @property
    def place(self) -> dict[str, int]:
        """Where in its source it is, `frame` or `row`; empty for an image file."""
        places = {"frame": self.frame, "row": self.row}
        return {name: number for name, number in places.items() if number is not None}


class Images(Iterator[NamedImage]):
    """Images one after the other; `operator.length_hint` gives their number, where that is known."""

    def __init__(self, images: Iterator[NamedImage], count: int | None) -> None:
        self._images, self._count = images, count

    def __next__(self) -> NamedImage:
        return next(self._images)

    def __length_hint__(self) -> int:
        return NotImplemented if self._count is None else self._count


def find_images(
    paths: Iterable[str | Path],
    every: int = 1,
    skip: Callable[[str], None] | None = None,
    value_range: Sequence[float] | None = None,
    split: str | None = None,
    image_decoder: str = PILLOW,
    warn: Callable[[str], None] | None = logger.warning,
) -> Images:
    """The images of files and folders, in the order of their names, and the frames of videos, one at a time.

    A file that is asked for twice comes once. Of folders hidden files and those of systems (`._a.jpg`, `@eaDir`) are
    left out, and of images with several pages or frames (GIF, TIFF, PNG, WebP, MPO) the first one is taken.

    Args:
        paths: image files, video files and folders, which are searched to the bottom; patterns such as `*.jpg`.
        every: take each `every`-th frame of a video.
        skip: is called for each file that cannot be read, or not to its end, with its name and the reason; the others
            still come. Without it such a file is an error.
        value_range: of pictures with more than 8 bits, see `upright_rgb`; the image processor of a model knows it.
        split: of a data set; then `paths` is one Hub id, one folder of tables with a column of images, or one folder of
            `save_to_disk`, and its rows are the images.
        image_decoder: of JPEG files; the image processor of a model knows who decoded them in training.
        warn: is told of each image of which only the first of several pages or frames is taken; None: an error.

    Raises:
        FileNotFoundError: a path that does not exist, or a folder without images and videos.
        ValueError: without `skip`, a file that cannot be read as an image or a video; without `warn`, one of several
            pages or frames; a data set that cannot be loaded or has no images.
        ImportError: a video, and neither OpenCV nor imageio is installed; or a decoder that is not installed.
    """
    require_decoder(image_decoder)

    def read(value: Any, where: str) -> Image.Image:
        image = _image(where, lambda: decode_image({"image": value, "value_range": value_range}, image_decoder))
        if (pages := pages_of(value)) > 1:
            message = f"{where}: it holds {pages} pages or frames, of which the first alone is used; for the others "
            message += "write each as a picture, or all as a video"
            if warn is None:
                raise DetectionDataError(message)
            warn(message)
        return image

    if split is not None:
        return _rows([str(path) for path in paths], split, skip, read)
    sources: dict[Path, Path] = {}
    depths: dict[Path, int] = {}
    for path in [Path(match) for asked in paths for match in _matches(asked)]:
        for file in _files(path, skip):
            absolute, depth = Path(os.path.abspath(file)), len(file.relative_to(path).parts) or 1
            sources.setdefault(absolute, file)
            depths[absolute] = min(depth, depths.get(absolute, depth))
    names = unique_names(depths)
    # Paths are checked at once, before the first image is asked for.
    found = (_read(file, names[absolute], every, skip, read) for absolute, file in sources.items())
    count = None if any(file.suffix.lower() in VIDEO_SUFFIXES for file in sources) else len(sources)
    return Images((image for images in found for image in images), count)


def unique_names(depths: dict[Path, int]) -> dict[Path, str]:
    """A name for each file that no other has, whatever the order of the files.

    Files that share their last `depth` parts without suffix get the suffix too; those that still share a name get one
    folder more, and so on.

    Args:
        depths: by absolute path, how many of its last parts make the shortest name.
    """
    longer = dict.fromkeys(depths, 0)
    while True:
        names = {file: _name(file, depth, longer[file]) for file, depth in depths.items()}
        keys = _keys(names)
        counts = Counter(keys.values())
        # Files whose whole paths differ in case alone keep them: only a file system that distinguishes them has both.
        shared = [file for file, key in keys.items() if counts[key] > 1 and longer[file] < 2 * len(file.parts)]
        if not shared:
            return names
        for file in shared:
            longer[file] += 1


def _name(file: Path, depth: int, longer: int) -> str:
    """The path's end: each second step takes the suffix off and adds a folder."""
    folders, with_suffix = divmod(longer, 2)
    parts = file.parts[1:][-(depth + folders) :]  # never the root, which would lead out of the output folder
    path = Path(*parts) if with_suffix else Path(*parts).with_suffix("")
    return Path(*map(bounded, path.parts)).as_posix()


def bounded(name: str) -> str:
    """A name that stays a valid one with a number and a suffix behind it: the end of a long one becomes its hash."""
    encoded = name.encode(errors="surrogateescape")
    if len(encoded) <= _LONGEST_NAME:
        return name
    code = hashlib.sha256(encoded).hexdigest()[:16]
    return f"{encoded[: _LONGEST_NAME - len(code) - 1].decode(errors='ignore')}-{code}"


def _keys(names: dict[Path, str]) -> dict[Path, str]:
    """What must differ: names without case, of which an image with the name of a video's frame has the video's."""
    videos = {name.lower() for file, name in names.items() if file.suffix.lower() in VIDEO_SUFFIXES}
    keys = {file: name.lower() for file, name in names.items()}
    return {file: stem if (stem := _FRAME.sub("", key)) in videos else key for file, key in keys.items()}


def _matches(path: str | Path) -> list[str]:
    """The path itself, or what a pattern finds that no shell has expanded."""
    if _ADDRESS.match(str(path)):
        how = f"download it first (curl -O {path})" if str(path).startswith("http") else "save it as a video first"
        message = f"{path} is an address, and only files are read: {how}, then name the file"
        raise FileNotFoundError(without_secrets(message))
    if not os.path.exists(path) and glob.has_magic(str(path)):
        return sorted(glob.glob(str(path), recursive=True)) or [str(path)]
    return [str(path)]


def _files(path: Path, skip: Callable[[str], None] | None) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        is_file = path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
        on_hub = (
            "" if is_file or not _HUB_ID.fullmatch(path.as_posix()) else "; of a data set on the Hub give the split"
        )
        raise FileNotFoundError(f"{path} does not exist: name image files, video files and folders{on_hub}")
    known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    files = []
    for name, _, is_file in walk_files(path, skip):
        if Path(name).suffix.lower() not in known:
            continue
        if is_file:
            files.append(path / name)
            continue
        problem = f"{path / name}: is no file; a link leads nowhere, or it is a pipe"
        if skip is None:
            raise DetectionDataError(problem)
        skip(problem)
    files.sort()
    if not files:
        tables = "; it has tables: give the split of this data set" if has_tables(str(path)) else ""
        raise FileNotFoundError(f"{path} holds no images ({' '.join(sorted(IMAGE_SUFFIXES))}) and no videos{tables}")
    return files


def _rows(
    sources: Sequence[str], split: str, skip: Callable[[str], None] | None, read: Callable[[Any, str], Image.Image]
) -> Images:
    """The images of one split of a data set."""
    if len(sources) != 1:
        raise DetectionDataError(f"split {split}: it is of one data set, and {len(sources)} are named; name one")
    (source,) = sources
    rows = open_tables(source, split)
    columns = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    column = "image" if "image" in columns else columns[0] if len(columns) == 1 else None
    if column is None:
        raise DetectionDataError(
            f"{source}, {split}: {columns or 'no'} columns of images among {list(rows.features)}; name the one 'image'"
        )
    undecoded = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))

    def images() -> Iterator[NamedImage]:
        for number, row in enumerate(undecoded):
            values: Any = row
            try:
                image = read(values[column], f"{source}, {split}, row {number}")
                yield NamedImage(f"{split}-{number:06d}", Path(source), image, row=number)
            except DetectionDataError as error:
                if skip is None:
                    raise
                skip(str(error))

    return Images(images(), len(rows))


def _read(
    file: Path, name: str, every: int, skip: Callable[[str], None] | None, read: Callable[[Any, str], Image.Image]
) -> Iterator[NamedImage]:
    try:
        if file.suffix.lower() in VIDEO_SUFFIXES:
            for number, frame in _frames(file, skip):
                if number % every == 0:
                    yield NamedImage(f"{name}-{number:06d}", file, frame, number)
        else:
            yield NamedImage(name, file, read(os.fspath(file), str(file)))
    except DetectionDataError as error:
        if skip is None:
            raise
        skip(str(error))


def _image(where: str, decode: Callable[[], Image.Image]) -> Image.Image:
    """What `decode` gives; errors name the image."""
    try:
        return decode()
    except MemoryError as error:
        raise DetectionDataError(f"{where}: there is not enough memory for this image") from error
    except Exception as error:
        # Whatever a decoder makes of damaged bytes; the reader's own words are about annotations.
        cause = error.__cause__ or error
        if isinstance(cause, Image.DecompressionBombError):
            raise DetectionDataError(
                f"{where}: the image has too many pixels ({cause}); raise the limit with --max_image_pixels, or make "
                "the image smaller"
            ) from error
        raise DetectionDataError(f"{where}: cannot be read as an image ({cause or type(cause).__name__})") from error


def _frames(file: Path, skip: Callable[[str], None] | None) -> Iterator[tuple[int, Image.Image]]:
    """The frames of a video with their numbers, by OpenCV, or by imageio with one of its video plugins."""
    try:
        import cv2  # pyright: ignore[reportMissingImports]
    except ImportError:
        yield from _frames_of_imageio(file, skip)
        return
    capture = cv2.VideoCapture(str(file))
    if not capture.isOpened():
        raise DetectionDataError(f"{file}: OpenCV cannot read this video")
    expected = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    number = found = failures = 0
    try:
        # Damage in the middle is no end: frames come after it.
        while failures < _FAILURES_IN_A_ROW and (not failures or number < expected):
            read, frame = capture.read()
            if read:
                yield number, Image.fromarray(frame[:, :, ::-1])
            found, failures, number = found + read, 0 if read else failures + 1, number + 1
    finally:
        capture.release()
    if not found:
        raise DetectionDataError(f"{file}: OpenCV opens this video, but reads no frame of it")
    if found < expected:
        _say_cut(file, found, expected, skip)


def _frames_of_imageio(file: Path, skip: Callable[[str], None] | None) -> Iterator[tuple[int, Image.Image]]:
    try:
        import imageio.v3 as imageio  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"{file}: videos need OpenCV or imageio; {install_hint('video')}") from error
    frames: Iterator[Any] = iter(imageio.imiter(file))
    for number in range(sys.maxsize):
        try:
            frame = next(frames, None)
        except Exception as error:  # whatever its plugins raise
            raise DetectionDataError(f"{file}: imageio reads {number} frames of this video ({error})") from error
        if frame is None and number == 0:
            raise DetectionDataError(f"{file}: imageio opens this video, but reads no frame of it")
        if frame is None:
            break
        yield number, Image.fromarray(frame).convert("RGB")
    if number < (expected := _frames_by_its_header(imageio, file)):
        _say_cut(file, number, expected, skip)


def _frames_by_its_header(imageio: Any, file: Path) -> float:
    """The least frames that a video has by its header: its own number, or nine tenths of duration times rate."""
    with suppress(Exception):  # whatever its plugins raise, which need not know either
        count = imageio.improps(file).n_images
        if count and math.isfinite(count):
            return float(count)
        about = imageio.immeta(file)
        return math.floor(0.9 * float(about["fps"]) * float(about["duration"]))
    return 0.0


def _say_cut(file: Path, found: int, expected: float, skip: Callable[[str], None] | None) -> None:
    message = f"{file}: {found} of {expected:.0f} frames can be read: the video is cut or damaged"
    if skip is None:
        raise DetectionDataError(message)
    skip(message)
