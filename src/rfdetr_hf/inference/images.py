"""Images to look at: files, folders and the frames of videos."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


class NamedImage(NamedTuple):
    """An upright RGB image.

    Attributes:
        name: path without suffix under what was asked for, unique among what is found there; frames of a video end in
            their number.
        source: the file it comes from.
        image: the pixels.
    """

    name: str
    source: Path
    image: Image.Image


def find_images(paths: Iterable[str | Path], every: int = 1) -> Iterator[NamedImage]:
    """The images of files and folders, in the order of their names, and the frames of videos, one at a time.

    Args:
        paths: image files, video files and folders, which are searched to the bottom.
        every: take each `every`-th frame of a video.

    Raises:
        FileNotFoundError: a path that does not exist, or a folder without images and videos.
        ValueError: a file that is neither an image nor a video.
        ImportError: a video, and neither OpenCV nor imageio is installed.
    """
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES)
            if not files:
                raise FileNotFoundError(f"{path} holds no images ({' '.join(IMAGE_SUFFIXES)}) and no videos")
            for file in files:
                yield from _read(file, file.relative_to(path), every)
        elif path.is_file():
            yield from _read(path, Path(path.name), every)
        else:
            raise FileNotFoundError(f"{path} does not exist")


def _read(file: Path, name: Path, every: int) -> Iterator[NamedImage]:
    stem = name.with_suffix("").as_posix()
    if file.suffix.lower() in VIDEO_SUFFIXES:
        for number, frame in _frames(file):
            if number % every == 0:
                yield NamedImage(f"{stem}-{number:06d}", file, frame)
        return
    try:
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"{file} is no image that Pillow reads, and no video ({' '.join(VIDEO_SUFFIXES)})") from error
    yield NamedImage(stem, file, upright)


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
        import imageio.v3 as imageio
    except ImportError as error:
        raise ImportError(f"{file}: videos need OpenCV or imageio: pip install 'rfdetr-hf[video]'") from error
    frames: Iterator[Any] = imageio.imiter(file)
    for number, frame in enumerate(frames):
        yield number, Image.fromarray(frame).convert("RGB")
