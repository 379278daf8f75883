"""One reading of every picture: whether it decodes, how it is turned, and its checksum; kept for the next time."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from datasets import Dataset
from datasets import config as datasets_config
from PIL import Image

from ..choices import install_hint
from .errors import DetectionDataError
from .pipeline.pixels import DECODE_ERRORS, check_image, max_image_pixels

__all__ = ["Picture", "Scan", "hash_function", "known_digest", "scan_pictures"]

_BATCH = 256
_FORMAT = 4
_COLUMNS = ("image", "image_id", "width", "height", "file_name", "value_range", "as_stored")
# Of files that were read in this process, by path, size and time of change.
_DIGESTS: dict[tuple[str, int, int], bytes] = {}


@dataclass(frozen=True)
class Picture:
    """What one reading of a picture shows.

    Attributes:
        name: of the file, or its image_id.
        fault: why it cannot be used; "" where it can.
        digest: SHA-256 of its bytes in hexadecimal; "" where only the header was read.
        orientation: EXIF orientation, 1 for as stored.
        turned: whether it is turned or mirrored by that; not where width and height are those of the stored pixels.
        beyond: it has more than 8 bits and numbers beyond the range of the data set.
        pages: pictures that its file holds, see `count_pages`; the first is used.
        near: perceptual hash in hexadecimal; "" where none was asked for.
    """

    name: str
    fault: str = ""
    digest: str = ""
    orientation: int = 1
    turned: bool = False
    beyond: bool = False
    pages: int = 1
    near: str = ""


@dataclass(frozen=True)
class Scan:
    """The pictures of a split.

    Attributes:
        rows: (n,) of the data set, ascending: all, or an even sample.
        total: rows of the data set.
        pictures: of these rows.
        decoded: whether pixels were decoded, or only headers read.
        cached: how many were known from an earlier scan.
    """

    rows: np.ndarray
    total: int
    pictures: Sequence[Picture] = field(repr=False)
    decoded: bool = True
    cached: int = 0

    @property
    def is_sample(self) -> bool:
        """Whether there are pictures that were not looked at."""
        return len(self.rows) < self.total


def scan_pictures(
    dataset: Dataset,
    *,
    decode: bool = True,
    near: bool = False,
    sample: int | None = None,
    num_threads: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Scan:
    """Read the pictures of a split once; those whose file has the size and time of an earlier scan are known.

    Threads do it, since file access, SHA-256 and Pillow's decoders run without the interpreter lock.

    Args:
        dataset: a split in the schema of `load_detection_dataset`.
        decode: read and decode the pixels; otherwise headers alone.
        near: also a perceptual hash.
        sample: look at no more than so many, evenly spaced.
        num_threads: the number of CPUs, at most 16, by default.
        cache_dir: folder of earlier scans; default: in the cache of `datasets`. "" keeps nothing.

    Raises:
        ImportError: `near` needs ImageHash.
    """
    total = len(dataset)
    rows = np.arange(total)
    if sample is not None and sample < total:
        rows = np.unique(np.linspace(0, total - 1, sample, dtype=np.int64))
    hashed = hash_function() if near else None
    table = dataset.select_columns([name for name in _COLUMNS if name in dataset.column_names])
    table = table if len(rows) == total else table.select(rows)
    store = _Store(cache_dir, table, [decode, near, max_image_pixels()])
    pictures: list[Picture] = []

    def look(row: dict[str, Any]) -> Picture:
        return store.known(row) or store.keep(row, _look(row, decode, hashed))

    with ThreadPoolExecutor(num_threads or min(16, os.cpu_count() or 1)) as pool:
        # Arrow format hands out paths and bytes whatever the image feature or the transform of the data set says.
        for batch in table.with_format("arrow").iter(_BATCH):
            pictures += pool.map(look, cast(pa.Table, batch).to_pylist())
    store.write()
    return Scan(rows, total, pictures, decode, store.hits)


def hash_function() -> Callable[[Image.Image], str]:
    """A perceptual hash, 64 bits in hexadecimal.

    Raises:
        ImportError: ImageHash is not installed.
    """
    try:
        import imagehash  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"near duplicates need ImageHash; {install_hint('audit')}") from error
    return lambda image: str(imagehash.phash(image))


def known_digest(path: str) -> bytes | None:
    """The SHA-256 of a file that this process has read, if it has not changed since."""
    try:
        return _DIGESTS.get(_key(path))
    except OSError:
        return None


def _key(path: str) -> tuple[str, int, int]:
    status = os.stat(path)
    return path, status.st_size, status.st_mtime_ns


def _path_of(row: Mapping[str, Any]) -> str | None:
    image = row["image"]
    return image["path"] if image and image.get("bytes") is None else None


def _look(row: Mapping[str, Any], decode: bool, hashed: Callable[[Image.Image], str] | None) -> Picture:
    path, data = _path_of(row), (row["image"] or {}).get("bytes")
    name = path or str(row.get("file_name") or f"image with image_id {row['image_id']}")
    facts: dict[str, Any] = {}
    try:
        if decode and path is not None and os.path.isfile(path):
            key = _key(path)
            data = Path(path).read_bytes()
            digest = hashlib.sha256(data).digest()
            _DIGESTS[key] = digest
            facts["digest"] = digest.hex()
            row = {**row, "image": {"bytes": data, "path": path}}
        elif data is not None:
            facts["digest"] = hashlib.sha256(data).hexdigest()
        facts |= check_image(row, decode=decode)._asdict()
        if data is not None and hashed is not None:
            with Image.open(io.BytesIO(data)) as image:
                image.draft("L", (max(1, image.width // 8), max(1, image.height // 8)))
                facts["near"] = hashed(image)
    except DetectionDataError as error:
        return Picture(name, str(error), facts.get("digest", ""))
    except DECODE_ERRORS as error:
        return Picture(name, f"{name}: the image cannot be read ({error}); replace it", facts.get("digest", ""))
    return Picture(name, **facts)


class _Store:
    """What the last scan of a split saw of its files, by path, size, time of change and the annotated frame.

    Args:
        folder: of the files of JSON; None for the cache of `datasets`, "" for none.
        dataset: the rows that are looked at.
        flags: what decides what a scan sees.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, dataset: Dataset, flags: Sequence[Any]) -> None:
        root = Path(datasets_config.HF_CACHE_HOME) / "rfdetr_hf" / "audit" if folder is None else folder
        first = dataset.select_columns(["image"]).with_format("arrow")[:1]["image"].to_pylist() if len(dataset) else []
        path = _path_of({"image": first[0]}) if first else None
        self.path: Path | None = None
        if root != "" and path is not None:
            named = json.dumps([_FORMAT, os.path.abspath(os.path.dirname(path)), len(dataset), *flags])
            self.path = Path(root) / f"{hashlib.sha256(named.encode()).hexdigest()[:20]}.json"
        self.entries: dict[str, dict[str, Any]] = {}
        self.seen: dict[str, dict[str, Any]] = {}
        self.hits = 0
        if self.path is not None and self.path.is_file():
            with suppress(ValueError, OSError):  # a file that somebody cut short: its pictures are read again
                self.entries = dict(json.loads(self.path.read_text(encoding="utf-8")))

    def _key(self, row: Mapping[str, Any]) -> str | None:
        path = _path_of(row)
        if path is None or self.path is None or not os.path.isfile(path):
            return None
        return json.dumps([*_key(path), *(row.get(name) for name in ("width", "height", "value_range", "as_stored"))])

    def known(self, row: Mapping[str, Any]) -> Picture | None:
        """What was seen of the picture of a row, if it is the same file."""
        key = self._key(row)
        if key is None or key not in self.entries:
            return None
        self.seen[key] = self.entries[key]
        self.hits += 1
        return Picture(str(_path_of(row)), **self.entries[key])

    def keep(self, row: Mapping[str, Any], picture: Picture) -> Picture:
        """Note what was seen; pictures with faults are looked at again the next time."""
        if not picture.fault and (key := self._key(row)) is not None:
            self.seen[key] = {name: value for name, value in asdict(picture).items() if name != "name"}
        return picture

    def write(self) -> None:
        """Replace the file; where it cannot be written the next scan reads all again."""
        if self.path is None or self.seen == self.entries:
            return
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self.seen), encoding="utf-8")
            os.replace(temporary, self.path)
