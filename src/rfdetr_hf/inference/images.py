"""Images to look at: files, folders and the frames of videos."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from ..bit_depth import upright_rgb
from ..data.images import IMAGE_SUFFIXES

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"})
_FRAME = re.compile(r"-\d{6,}$")


class NamedImage(NamedTuple):
    """An upright RGB image.

    Attributes:
        name: path under what was asked for, unique among all that was asked for, without regard to case. It has no
            suffix, and no folder above, but where files would share it; frames of a video end in their number.
        source: the file it comes from.
        image: the pixels.
    """

    name: str
    source: Path
    image: Image.Image


def find_images(
    paths: Iterable[str | Path], every: int = 1, value_range: Sequence[float] | None = None
) -> Iterator[NamedImage]:
    """The images of files and folders, in the order of their names, and the frames of videos, one at a time.

    A file that is asked for twice comes once.

    Args:
        paths: image files, video files and folders, which are searched to the bottom.
        every: take each `every`-th frame of a video.
        value_range: of pictures with more than 8 bits, see `upright_rgb`; the image processor of a model knows it.

    Raises:
        FileNotFoundError: a path that does not exist, or a folder without images and videos.
        ValueError: a file that is neither an image nor a video.
        ImportError: a video, and neither OpenCV nor imageio is installed.
    """
    sources: dict[Path, Path] = {}
    depths: dict[Path, int] = {}
    for path in map(Path, paths):
        for file in _files(path):
            absolute, depth = Path(os.path.abspath(file)), len(file.relative_to(path).parts) or 1
            sources.setdefault(absolute, file)
            depths[absolute] = min(depth, depths.get(absolute, depth))
    names = unique_names(depths)
    for absolute, file in sources.items():
        yield from _read(file, names[absolute], every, value_range)


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
        # Files whose whole paths differ in case alone keep them: only a file system that tells them apart has both.
        shared = [file for file, key in keys.items() if counts[key] > 1 and longer[file] < 2 * len(file.parts)]
        if not shared:
            return names
        for file in shared:
            longer[file] += 1


def _name(file: Path, depth: int, longer: int) -> str:
    """The path's end: each second step takes the suffix off and adds a folder."""
    folders, with_suffix = divmod(longer, 2)
    parts = file.parts[1:][-(depth + folders) :]  # never the root, which would lead out of the output folder
    return Path(*parts).as_posix() if with_suffix else Path(*parts).with_suffix("").as_posix()


def _keys(names: dict[Path, str]) -> dict[Path, str]:
    """What must differ: names without case, of which an image with the name of a video's frame has the video's."""
    videos = {name.lower() for file, name in names.items() if file.suffix.lower() in VIDEO_SUFFIXES}
    keys = {file: name.lower() for file, name in names.items()}
    return {file: stem if (stem := _FRAME.sub("", key)) in videos else key for file, key in keys.items()}


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist")
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES)
    if not files:
        raise FileNotFoundError(f"{path} holds no images ({' '.join(sorted(IMAGE_SUFFIXES))}) and no videos")
    return files


def _read(file: Path, name: str, every: int, value_range: Sequence[float] | None) -> Iterator[NamedImage]:
    if file.suffix.lower() in VIDEO_SUFFIXES:
        for number, frame in _frames(file):
            if number % every == 0:
                yield NamedImage(f"{name}-{number:06d}", file, frame)
        return
    try:
        with Image.open(file) as image:
            upright = upright_rgb(image, value_range)
    except UnidentifiedImageError as error:
        videos = " ".join(sorted(VIDEO_SUFFIXES))
        raise ValueError(f"{file} is no image that Pillow reads, and no video ({videos})") from error
    yield NamedImage(name, file, upright)


def _frames(file: Path) -> Iterator[tuple[int, Image.Image]]:
    """The frames of a video with their numbers, by OpenCV, or by imageio with one of its video plugins."""
    try:
        import cv2
    except ImportError:
        yield from _frames_of_imageio(file)
        return
    capture = cv2.VideoCapture(str(file))
    if not capture.isOpened():
        raise ValueError(f"{file}: OpenCV cannot read this video")
    number = 0
    try:
        while True:
            read, frame = capture.read()
            if not read:
                return
            yield number, Image.fromarray(frame[:, :, ::-1])
            number += 1
    finally:
        capture.release()


def _frames_of_imageio(file: Path) -> Iterator[tuple[int, Image.Image]]:
    try:
        import imageio.v3 as imageio  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"{file}: videos need OpenCV or imageio: pip install 'rfdetr-hf[video]'") from error
    frames: Iterator[Any] = imageio.imiter(file)
    for number, frame in enumerate(frames):
        yield number, Image.fromarray(frame).convert("RGB")
