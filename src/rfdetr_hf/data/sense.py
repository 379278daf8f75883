"""What splits say about each other, and whether there is anything to learn and to score."""

import io
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
from datasets import Dataset, List, Value
from PIL import Image

from ..bit_depth import CUT, DEEP, SHALLOW, depth_of_header
from ..choices import counted, names_alike, plain_name
from .errors import DetectionDataError
from .pipeline.pixels import DECODE_ERRORS, decode_image, find_value_range, may_have_exif, stored_frame
from .schema import class_names, has_keypoints, labelled_images, unchunked, undecoded
from .shards.dataset import ShardedDataset

logger = logging.getLogger(__name__)
# Its functions are made at import, where type checkers do not see them.
pc: Any = pyarrow.compute

_EXAMPLES = 3
_RARE = 0.2  # of the objects of a class, that a misspelt one has at most
# The numbers of so many deep pictures give the range.
_LOOKED_AT = 64
# More than the upper 8 of 16 bits are then; up to the second, pictures of the night are too.
_OF_12_BITS, _OF_14_BITS = 16, 64
_THREADS, _BATCH = 8, 512
_HEAD = 4096  # bytes of a file in which nearly all tags stand
_ENOUGH = 3  # photographs whose size tells how the others were annotated
_SIDEWAYS = 5  # EXIF orientations from here on exchange width and height


def check_sense(splits: Mapping[str, Dataset], source: str) -> None:
    """Warn of names that are nearly one, of splits without objects and of images that two splits share.

    Args:
        splits: in the schema, as they were read.
        source: for messages.

    Raises:
        DetectionDataError: a file in two splits, or twice in one, with different boxes, categories, masks or keypoints.
    """
    _report_alike(splits, source)
    sharded = {name: split for name, split in splits.items() if isinstance(split, ShardedDataset)}
    for name, split in sharded.items():
        if split.counts is not None and not split.counts.boxes:
            logger.warning(
                "%s: %s split: no object, or crowds alone, in %s", source, name, counted(len(split), "image")
            )
    splits = {name: split for name, split in splits.items() if name not in sharded}
    for name, split in splits.items():
        if has_keypoints(split):
            points = _objects(split).field("keypoints").flatten().flatten().to_numpy(zero_copy_only=False)
            if len(points) and not (points[2::3] > 0).any():
                logger.warning(
                    "%s: %s split: no keypoint is labelled in %s", source, name, counted(len(split), "image")
                )
        _report_unlabelled(split, name, source)
        _report_repeated(split, name, source)
        crowd = _objects(split).field("iscrowd").flatten().to_numpy(zero_copy_only=False).astype(bool)
        if len(crowd) and not crowd.all():
            continue
        fault = "all objects are crowds (field iscrowd)" if len(crowd) else "there is no object"
        effect = "there is nothing to learn" if name == "train" else "no score can be given"
        logger.warning("%s: %s split: %s in %s, so %s", source, name, fault, counted(len(split), "image"), effect)
    check_shared(splits, source)


def _report_alike(splits: Mapping[str, Dataset], source: str) -> None:
    """Warn of classes that are nearly called the same; of a plural where one of the two is rare."""
    names = class_names(next(iter(splits.values())))
    objects: np.ndarray | None = np.zeros(len(names), np.int64)
    for split in splits.values():
        if not isinstance(split, ShardedDataset):
            labels = _objects(split).field("category").flatten().to_numpy(zero_copy_only=False)
            objects = None if objects is None else objects + np.bincount(labels, minlength=len(names))
        else:
            objects = None if objects is None or split.counts is None else objects + np.array(split.counts.objects)
    alike, how = names_alike(names), "case and blanks"
    if not alike and objects is not None:
        alike, how = names_alike(names, lambda name: plain_name(name).removesuffix("s")), "an s at the end"
        found = [objects[names.index(name)] for name in alike]
        alike = alike if alike and min(found) < _RARE * max(found) else []
    if alike:
        known = [repr(n) if objects is None else f"{n!r} ({counted(int(objects[names.index(n)]), 'object')})"
                 for n in alike[:3]]  # fmt: skip
        main = alike[0] if objects is None else max(alike, key=lambda name: objects[names.index(name)])
        logger.warning(
            "%s: the classes %s differ in %s alone: are they one? rename it, or map it with sources and classes: "
            "{%r: %s}", source, ", ".join(known), how, main.strip(), alike[:3],
        )  # fmt: skip


def check_shared(splits: Mapping[str, Dataset], source: str, compare: bool = True) -> None:
    """Warn of images that two splits share; of shards nobody knows.

    Args:
        splits: in the schema.
        source: for messages.
        compare: whether the rows of a file that stands once in each split must say the same.

    Raises:
        DetectionDataError: they do not.
    """
    splits = {name: split for name, split in splits.items() if not isinstance(split, ShardedDataset)}
    files = {name: _files(split) for name, split in splits.items()}
    names = list(splits)
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            shared = sorted(files[first].keys() & files[second].keys())
            if shared:
                found = {file: (files[first][file], files[second][file]) for file in shared}
                _report_shared(splits, source, first, second, found, compare)


def _report_unlabelled(split: Dataset, name: str, source: str) -> None:
    """Say how far the classes of a split are labelled, and warn of those that are labelled completely in no image."""
    counts = labelled_images(split)
    if counts is None:
        return
    names, total = class_names(split), len(split)
    logger.info(
        "%s: %s split: %d of %s labelled in all of %s; where one is not, it is no negative",
        source, name, int((counts == total).sum()), counted(len(names), "class", "is"), counted(total, "image"),
    )  # fmt: skip
    nowhere = [label for label, count in zip(names, counts.tolist(), strict=True) if not count]
    if nowhere:
        effect = "nothing teaches where they are not" if name == "train" else "their false detections are not counted"
        logger.warning(
            "%s: %s split: %s labelled completely in no image, such as %s: %s",
            source, name, counted(len(nowhere), "class", "is"), ", ".join(nowhere[:_EXAMPLES]), effect,
        )  # fmt: skip


def _report_repeated(split: Dataset, name: str, source: str) -> None:
    """Warn of files that several rows have, as in sources that share them; these say the same of common classes.

    Raises:
        DetectionDataError: they do not.
    """
    repeated = {file: rows for file, rows in _files(split).items() if len(rows) > 1}
    if not repeated:
        return
    names = class_names(split)
    for file, rows in repeated.items():
        first, *others = split.select_columns(["objects"]).select(rows)["objects"]
        known = (
            split.select(rows)["labelled_classes"] if "labelled_classes" in split.column_names else [None] * len(rows)
        )
        sets = [set(range(len(names)) if own is None else own) for own in known]
        for other, labelled in zip(others, sets[1:], strict=True):
            both = sets[0] & labelled
            pair = [
                {
                    field: [v for v, c in zip(values, each["category"], strict=True) if c in both]
                    for field, values in each.items()
                }
                for each in (first, other)
            ]
            if fault := _difference(*pair):
                raise DetectionDataError(
                    f"{source}: {name} split: {file} is there {len(rows)} times, with different {fault} of the classes "
                    f"{[names[i] for i in sorted(both)]}; have it in one source, or give the sources different classes"
                )
    logger.warning(
        "%s: %s split: %s there several times, such as %s: what one row labels and another does not is taught by one "
        "of them alone", source, name, counted(len(repeated), "image", "is"), ", ".join(list(repeated)[:_EXAMPLES]),
    )  # fmt: skip


def with_value_range(splits: Mapping[str, Dataset], source: str) -> dict[str, Dataset]:
    """The splits with the range of their pictures of more than 8 bits, where there are any.

    The headers of all pictures are looked at, and the range is that of the first split with deep ones.

    Raises:
        DetectionDataError: a picture holds numbers that are not finite, or of 12 bits or fewer in colours of 16.
    """
    first = next(iter(splits.values()))
    if isinstance(first, ShardedDataset):  # written with the range in a column
        return dict(splits)
    found, count, heads = None, 0, {}
    for name, split in splits.items():
        heads[name] = _heads(split)
        depths = heads[name][:, 0]
        columns = [column for column in ("image", "image_id", "file_name") if column in split.column_names]
        pictures = undecoded(split).select_columns(columns)
        if len(rows := _spread(depths == CUT)):
            _check_cut(iter(pictures.select(rows)), int((depths == CUT).sum()), f"{source}: {name} split")
        if found is None and len(rows := _spread(depths == DEEP)):
            found, count = find_value_range(iter(pictures.select(rows))), int((depths == DEEP).sum())
    splits = _with_stored_frames(splits, heads, source)
    if found is None:
        return dict(splits)
    logger.warning(
        "%s: %s more than 8 bits; values %g to %g become 0 to 255, in training and in prediction",
        source, counted(count, "picture", "has"), *found,
    )  # fmt: skip
    return {
        name: split.add_column("value_range", [list(found)] * len(split), feature=List(Value("float64"), length=2))
        for name, split in splits.items()
    }


def _with_stored_frames(
    splits: Mapping[str, Dataset], heads: Mapping[str, np.ndarray], source: str
) -> Mapping[str, Dataset]:
    """The splits with a column where EXIF tags are not followed in images whose width and height do not tell.

    What the tool did that annotated the images, those tell that stand upright: in one frame alone they fit their size.
    """
    unclear, stored, shown = {}, 0, 0
    for name, split in splits.items():
        table = split.select_columns(["width", "height"]).with_format("arrow")[:]
        frame = np.stack([table[side].to_numpy() for side in ("width", "height")], axis=1)
        tag, size = heads[name][:, 1], heads[name][:, 2:]
        upright = np.where((tag >= _SIDEWAYS)[:, None], size[:, ::-1], size)
        fits, fits_upright = (size == frame).all(axis=1) & (tag > 1), (upright == frame).all(axis=1) & (tag > 1)
        stored, shown = stored + int((fits & ~fits_upright).sum()), shown + int((fits_upright & ~fits).sum())
        unclear[name] = fits & fits_upright
    if not (count := sum(int(each.sum()) for each in unclear.values())) or (shown and not stored):
        return splits
    text = "%s: %s with an EXIF tag and one size as stored and as shown (half turns, mirrors, squares): "
    if stored >= min(_ENOUGH, count) and not shown:
        pictures = counted(count, "picture"), counted(stored, "other")
        logger.warning(text + "boxes are read as stored, as the size of %s says", source, *pictures)
        return {n: split.add_column("as_stored", unclear[n], feature=Value("bool")) for n, split in splits.items()}
    text += "boxes are read as shown, and of others %d say so by the size and %d the contrary; look at them in "
    text += "rfdetr-hf data preview, and remove the tags if that is wrong"
    logger.warning(text, source, counted(count, "picture"), shown, stored)
    return splits


def _spread(mask: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero(mask)
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(_LOOKED_AT, len(rows)), dtype=int))]


def _check_cut(pictures: Iterable[Any], count: int, place: str) -> None:
    """Pictures of which Pillow keeps the upper 8 of 16 bits: there must be something in these.

    Raises:
        DetectionDataError: there is nothing but the uppermost of 12 bits or fewer.
    """
    brightest, name = -1, ""
    for example in pictures:
        with suppress(DetectionDataError):  # the audit names files that cannot be decoded
            high = int(np.asarray(decode_image(example)).max(initial=0))
            brightest, name = max((brightest, name), (high, str(example.get("file_name") or example["image_id"])))
    if 0 <= brightest < _OF_14_BITS:
        text = (
            f"{place}: {counted(count, 'picture', 'has')} 16 bits a colour, such as {name}, of which Pillow keeps the "
            f"upper 8, and these go up to {brightest} of 255: numbers of 10, 12 or 14 bits become nearly black"
        )
        if brightest < _OF_12_BITS:
            raise DetectionDataError(f"{text}; write the pictures with 8 bits a colour")
        logger.warning("%s; if they are not so dark, write them with 8 bits a colour", text)
        return
    logger.warning("%s: of %s with 16 bits a colour the upper 8 are used", place, counted(count, "picture"))


def _heads(split: Dataset) -> np.ndarray:
    """(n, 4) by the beginning of each picture's file: depth, see `depth_of_header`, EXIF orientation, width, height.

    The sizes are those of the stored pixels, and 0 where there is no tag.
    """
    images = undecoded(split.select_columns(["image"])).with_format("arrow")
    found: list[tuple[int, ...]] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for batch in images.iter(_BATCH):
            column = unchunked(cast(pa.Table, batch)["image"])
            heads = pc.binary_slice(column.field("bytes"), 0, _HEAD).to_pylist()
            paths, contents = column.field("path").to_pylist(), [column.field("bytes")] * len(column)
            found += pool.map(_head, heads, paths, contents, range(len(column)))
    return np.array(found, np.int64).reshape(-1, 4)


def _head(head: bytes | None, path: str | None, contents: pa.Array, row: int) -> tuple[int, ...]:
    """What cannot be read has 8 bits and no tag, since others name it."""
    inline = head is not None
    with suppress(*DECODE_ERRORS):
        if head is None:
            with open(path or "", "rb") as file:
                head = file.read(_HEAD)

        def source() -> Any:
            return io.BytesIO(contents[row].as_py()) if inline else path

        depth, tag, size = depth_of_header(head, source), 1, (0, 0)
        if may_have_exif(head):
            with Image.open(source()) as image:
                tag, size = stored_frame(image)
        return depth, tag, *size
    return SHALLOW, 1, 0, 0


def _report_shared(
    splits: Mapping[str, Dataset], source: str, first: str, second: str,
    shared: Mapping[str, tuple[Sequence[int], Sequence[int]]], compare: bool,
) -> None:  # fmt: skip
    """Warn of files in two splits, whose rows in each are given."""
    single = {path: (mine[0], theirs[0]) for path, (mine, theirs) in shared.items()
              if compare and len(mine) == len(theirs) == 1}  # fmt: skip
    rows, others = [pair[0] for pair in single.values()], [pair[1] for pair in single.values()]
    mine, theirs = (
        _objects(splits[name]).take(pa.array(at, pa.int64())) for name, at in ((first, rows), (second, others))
    )
    for a, b, path in zip(mine.to_pylist(), theirs.to_pylist(), single, strict=True):
        fault = _difference(a, b)
        if fault:
            raise DetectionDataError(
                f"{source}: {path} is in the splits {first} and {second} with different {fault}; leave it in one of "
                "them"
            )
    logger.warning(
        "%s: %s in the splits %s and %s, such as %s: scores on %s are of images that were seen",
        source, counted(len(shared), "image", "is"), first, second, ", ".join(list(shared)[:_EXAMPLES]), second,
    )  # fmt: skip


def _difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str | None:
    """Which field of an image's objects, in whatever order they are, differs between two rows."""
    named = {"bbox": "boxes", "category": "categories", "segmentation": "masks", "keypoints": "keypoints"}
    boxes = [np.round(each["bbox"], 3).tolist() for each in (first, second)]
    sides = [{**each, "bbox": box} for each, box in zip((first, second), boxes, strict=True)]
    for count in range(1, len(named) + 1):
        fields = [name for name in list(named)[:count] if name in first and name in second]
        rows = [sorted(zip(*(map(repr, each[name]) for name in fields), strict=True)) for each in sides]
        if rows[0] != rows[1]:
            return named[fields[-1]]
    return None


def _objects(split: Dataset) -> pa.StructArray:
    return split.select_columns(["objects"]).with_format("arrow")[:]["objects"].combine_chunks()


def _files(split: Dataset) -> dict[str, list[int]]:
    """Rows of each image that is a file on this machine; tables may have many of one file."""
    images = split.data.column("image")
    columns = pc.struct_field(images, "path"), pc.is_valid(pc.struct_field(images, "bytes"))
    if split._indices is not None:  # of a selection; the bytes stay where they are
        columns = tuple(column.take(split._indices.column(0)) for column in columns)
    paths, inline = (column.to_pylist() for column in columns)
    folders: dict[str, str] = {}
    found: dict[str, list[int]] = {}
    for row, (path, here) in enumerate(zip(paths, inline, strict=True)):
        if path and not here:
            folder, name = os.path.split(path)
            real = folders.setdefault(folder, os.path.realpath(folder))
            file = os.path.join(real, name)
            file = os.path.realpath(file) if os.path.islink(file) else file
            found.setdefault(file, []).append(row)
    return found
