"""Detections of many images as a few compact arrays: taken in, kept, ordered, moved between processes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from pycocotools import mask as mask_utils
from torch import Tensor

from ..values import is_boolean

# One detection, 64 bytes; `image` is the position of the image id among the sorted ids of the ground truth, `size` is
# width and height of the box, which are not always what its corners give to the last bit.
DETECTION = np.dtype([("image", "i4"), ("label", "i4"), ("score", "f8"), ("box", "f8", (4,)), ("size", "f8", (2,))])
_WORDS = DETECTION.itemsize // 4
_NO_LABEL = torch.iinfo(torch.int32).min  # stands for a label that is no integer of 32 bits


@dataclass
class DetectionTable:
    """A table of detections.

    Attributes:
        rows: (n,) of dtype `DETECTION`; boxes are xyxy in pixels.
        masks: per row the counts of a compressed COCO RLE of the image's size, or None where there are no masks.
        keypoints: (n, K, 3) float64 x, y in pixels and a confidence, or None where there are none.
    """

    rows: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=DETECTION))
    masks: list[bytes] | None = None
    keypoints: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: np.ndarray) -> "DetectionTable":
        """The rows at these positions, in this order."""
        masks = None if self.masks is None else [self.masks[i] for i in index.tolist()]
        return DetectionTable(self.rows[index], masks, None if self.keypoints is None else self.keypoints[index])

    def by_image(self) -> "DetectionTable":
        """Ordered by image; within an image the order stays."""
        return self.take(np.argsort(self.rows["image"], kind="stable"))

    @property
    def boxes_xywh(self) -> np.ndarray:
        """(n, 4) float64 x, y, width, height: what COCO's arithmetic works on."""
        return np.concatenate([self.rows["box"][:, :2], self.rows["size"]], axis=1)


def concatenate(tables: Sequence[DetectionTable], like: DetectionTable) -> DetectionTable:
    """One table of several; `like` is an empty table that says which columns there are."""
    rows = np.concatenate([like.rows, *(table.rows for table in tables)])
    masks = None if like.masks is None else [counts for table in tables for counts in table.masks or ()]
    found = [table.keypoints for table in (like, *tables) if table.keypoints is not None]
    points = None if like.keypoints is None else np.concatenate(found)
    return DetectionTable(rows, masks, points)


def pack(
    ids: Sequence[Any],
    positions: Sequence[int],
    predictions: Sequence[Mapping[str, Any]],
    sizes: Sequence[tuple[int, int]],
    like: DetectionTable,
) -> DetectionTable:
    """The predictions of some images as a table.

    Args:
        ids: image ids, for error messages.
        positions: of these images among all.
        predictions: per image `scores` (n,), `labels` (n,), `boxes` (n, 4) xyxy or `boxes_xywh`; where `like` has the
            columns also `masks`, (n, H, W) or n of (H, W) with true and false, or 0 and 1, or n RLE dicts, and
            `keypoints` (n, K, 3).
        sizes: (height, width) of the images, which the masks must have; read only when there are masks.
        like: an empty table that says which columns there are.

    Raises:
        ValueError: sizes do not fit, a field is missing, a number is not finite, a label is no integer of 32 bits, or a
            box has a negative size.
    """
    numbers, labels, counts, sized, masks = [], [], [], [], []
    for image_id, prediction, size in zip(ids, predictions, sizes, strict=True):
        exact_size = "boxes_xywh" in prediction
        names = ("scores", "labels", "boxes_xywh" if exact_size else "boxes")
        fields = (_field(prediction, key, image_id) for key in names)
        score, label, box = map(torch.as_tensor, fields)
        for key, tensor in zip(names, (score, label, box), strict=True):
            listed = prediction[key] if isinstance(prediction[key], (list, tuple)) else ()
            if tensor.numel() and (tensor.dtype == torch.bool or any(map(is_boolean, listed))):
                wanted = "integers, the ids of the categories" if key == "labels" else "numbers"
                raise ValueError(f"Image {image_id}: {key} are true or false; give {wanted}.")
        box = box.reshape(0, 4) if box.numel() == 0 else box
        if score.ndim != 1 or score.shape != label.shape or box.shape != (len(score), 4):
            raise ValueError(
                f"Image {image_id}: scores {tuple(score.shape)}, labels {tuple(label.shape)} and boxes "
                f"{tuple(box.shape)} do not fit; expected (n,), (n,) and (n, 4)."
            )
        columns = [score[:, None], box]
        if like.keypoints is not None:
            columns.append(_points(prediction, image_id, len(score), like.keypoints.shape[1]).to(score.device))
        if like.masks is not None:
            masks.extend(_encode(_field(prediction, "masks", image_id), image_id, len(score), size))
        # Float64 stays what it is; not all devices know it, so nothing else becomes it there.
        exact = any(column.dtype == torch.float64 for column in columns)
        numbers.append(torch.cat([column.double() if exact else column.float() for column in columns], dim=1))
        # On the device, so that the host does not wait for each image.
        whole = label.to(torch.int32)
        labels.append(torch.where(whole == label, whole, _NO_LABEL))
        counts.append(len(score))
        sized.append(exact_size)
    # One tensor, one copy to the host: the bits of the labels travel as a number of the same width.
    values, every = torch.cat(numbers), torch.cat(labels)
    bits = every.double() if values.dtype == torch.float64 else every.view(torch.float32)
    copied = torch.cat([bits[:, None], values], dim=1).cpu().numpy()
    rows = np.empty(len(copied), dtype=DETECTION)
    rows["image"] = np.repeat(np.asarray(positions, dtype=np.int32), counts)
    first = np.ascontiguousarray(copied[:, 0])
    rows["label"] = first if copied.dtype == np.float64 else first.view(np.int32)
    rows["score"], rows["box"] = copied[:, 1], copied[:, 2:6]
    given = np.repeat(sized, counts)[:, None]
    corner, last = rows["box"][:, :2].copy(), rows["box"][:, 2:].copy()
    rows["size"] = np.where(given, last, last - corner)
    rows["box"][:, 2:] = np.where(given, corner + last, last)
    points = None
    if like.keypoints is not None:
        points = copied[:, 6:].astype(np.float64).reshape(len(rows), *like.keypoints.shape[1:])
    table = DetectionTable(rows, masks if like.masks is not None else None, points)
    _check_numbers(table, ids, positions)
    return table


def gather(table: DetectionTable, like: DetectionTable, accelerator: Accelerator) -> DetectionTable:
    """The rows of all processes, on each of them, in the order of the ranks; plain arrays travel, no pickles."""
    words = _to_words(table)
    lengths = [len(counts) for counts in table.masks or [b""] * len(table)]
    words = np.concatenate([words, np.asarray(lengths, dtype=np.int32)[:, None]], axis=1)
    # A first row of padding keeps the tensor from being empty on a process without detections.
    words = np.concatenate([np.full((1, words.shape[1]), -1, dtype=np.int32), words])
    gathered = _gather_padded(words, accelerator)
    kept = gathered[gathered[:, 0] >= 0]
    masks = None
    if like.masks is not None:
        blob = np.frombuffer(b"\0" + b"".join(table.masks or []), dtype=np.uint8)
        blobs = _gather_padded(blob, accelerator).reshape(accelerator.num_processes, -1)
        rank_rows = gathered.reshape(accelerator.num_processes, -1, gathered.shape[1])
        masks = [
            counts
            for bytes_of_rank, rows in zip(blobs, rank_rows, strict=True)
            for counts in _split(bytes_of_rank[1:], rows[rows[:, 0] >= 0, -1])
        ]
    return _from_words(kept[:, :-1], masks or [], like)


def _gather_padded(values: np.ndarray, accelerator: Accelerator) -> np.ndarray:
    """Equally long blocks, one per process, padded with -1 (of the type of the values)."""
    tensor = torch.from_numpy(values.copy()).to(accelerator.device)
    pad = -1 if values.dtype == np.int32 else 0
    gathered: Any = accelerator.gather(accelerator.pad_across_processes(tensor, dim=0, pad_index=pad))
    return gathered.cpu().numpy()


def _split(blob: np.ndarray, lengths: np.ndarray) -> Iterator[bytes]:
    ends = np.cumsum(lengths).tolist()
    data = blob.tobytes()
    for start, end in zip([0, *ends[:-1]], ends, strict=False):
        yield data[start:end]


def _to_words(table: DetectionTable) -> np.ndarray:
    words = np.ascontiguousarray(table.rows).view(np.int32).reshape(-1, _WORDS)
    if table.keypoints is None:
        return words
    points = np.ascontiguousarray(table.keypoints).view(np.int32).reshape(len(words), 6 * table.keypoints.shape[1])
    return np.concatenate([words, points], axis=1)


def _from_words(words: np.ndarray, masks: list[bytes], like: DetectionTable) -> DetectionTable:
    rows = np.ascontiguousarray(words[:, :_WORDS]).view(DETECTION).reshape(-1)
    points = None
    if like.keypoints is not None:
        points = np.ascontiguousarray(words[:, _WORDS:]).view(np.float64).reshape(len(rows), *like.keypoints.shape[1:])
    return DetectionTable(rows, masks if like.masks is not None else None, points)


def _field(prediction: Mapping[str, Any], key: str, image_id: Any) -> Any:
    if key not in prediction:
        raise ValueError(f"Image {image_id}: the prediction has no {key!r}, only {sorted(prediction)}.")
    return prediction[key]


def _points(prediction: Mapping[str, Any], image_id: Any, count: int, num_keypoints: int) -> Tensor:
    points = torch.as_tensor(_field(prediction, "keypoints", image_id))
    if points.numel() == 0 and count == 0:
        return torch.zeros(0, 3 * num_keypoints)
    if points.shape != (count, num_keypoints, 3):
        raise ValueError(
            f"Image {image_id}: keypoints {tuple(points.shape)} do not fit; expected ({count}, {num_keypoints}, 3)."
        )
    return points.flatten(1)


def _encode(masks: Any, image_id: Any, count: int, size: tuple[int, int]) -> list[bytes]:
    """Run lengths of the masks of one image; the dense masks are not kept."""
    listed = list(masks) if isinstance(masks, (list, tuple)) else []
    if listed and all(isinstance(mask, Tensor | np.ndarray) for mask in listed):
        shapes = {tuple(mask.shape) for mask in listed}
        if shapes != {tuple(size)}:
            raise ValueError(f"Image {image_id}: masks {sorted(shapes)} do not fit; expected {tuple(size)} each.")
        masks = torch.stack([torch.as_tensor(mask) for mask in listed])
    elif not isinstance(masks, Tensor | np.ndarray):
        are_runs = all(isinstance(mask, Mapping) and {"size", "counts"} <= set(mask) for mask in listed)
        if not isinstance(masks, (list, tuple)) or not are_runs:
            raise ValueError(f"Image {image_id}: masks must be arrays of the image's size, or run-lengths of COCO.")
    if isinstance(masks, Tensor | np.ndarray):
        masks = torch.as_tensor(masks)
        if tuple(masks.shape) != (count, *size):
            raise ValueError(
                f"Image {image_id}: masks {tuple(masks.shape)} do not fit; expected {(count, *size)}, the image's size."
            )
        inside = masks != 0
        # Pictures of masks have 255 for object.
        if masks.dtype != torch.bool and not any(bool((masks[inside] == top).all()) for top in (1, 255)):
            raise ValueError(
                f"Image {image_id}: masks must be true and false, or 0 and 1, and have other numbers: compare "
                "probabilities with 0.5, logits with 0."
            )
        # pycocotools wants columns first: (n, W, H) in memory is a Fortran-ordered (H, W, n).
        columns_first = inside.to(torch.uint8).transpose(1, 2).contiguous().cpu().numpy()
        masks = mask_utils.encode(columns_first.transpose(2, 1, 0)) if count else []
    wrong = [tuple(mask["size"]) for mask in masks if tuple(mask["size"]) != tuple(size)]
    if len(masks) != count or wrong:
        raise ValueError(
            f"Image {image_id}: {len(masks)} masks{f' of size {wrong[0]}' if wrong else ''} do not fit; "
            f"expected {count} of size {tuple(size)}, the image's."
        )
    return [compressed(mask)["counts"] for mask in masks]


def compressed(mask: Mapping[str, Any]) -> dict[str, Any]:
    """A COCO run-length encoding with its counts as compressed bytes, whatever form they have."""
    size, counts = list(mask["size"]), mask["counts"]
    if not isinstance(counts, (str, bytes)):
        plain: Any = {"size": size, "counts": list(counts)}
        counts = mask_utils.frPyObjects(plain, *size)["counts"]
    return {"size": size, "counts": counts.encode() if isinstance(counts, str) else counts}


def _check_numbers(table: DetectionTable, ids: Sequence[int], positions: Sequence[int]) -> None:
    finite = np.isfinite(table.rows["score"]) & np.isfinite(table.rows["box"]).all(axis=1)
    if table.keypoints is not None:
        finite &= np.isfinite(table.keypoints).all(axis=(1, 2))
    if not finite.all():
        images = sorted({ids[positions.index(position)] for position in table.rows["image"][~finite].tolist()})
        raise ValueError(
            f"Scores, boxes or keypoints of images {first_few(images)} are NaN or infinite: the model has diverged."
        )
    rows = table.rows
    # Corners that are computed from a size may miss each other by a rounding.
    rounding = 1e-5 * (1 + np.abs(rows["box"]).max(axis=1, initial=0))
    for wrong, text in (
        (rows["label"] == _NO_LABEL, "labels must be integers of 32 bits, the ids of the categories"),
        (rows["size"].min(axis=1, initial=0) < -rounding,
         "boxes must be x1, y1, x2, y2 with x1 <= x2 and y1 <= y2, or, as boxes_xywh, x, y, width, height"),
    ):  # fmt: skip
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            found = "" if text.startswith("labels") else f", not {rows['box'][row].tolist()}"
            raise ValueError(f"Image {ids[positions.index(int(rows['image'][row]))]}: {text}{found}")


def first_few(items: Any, limit: int = 10) -> str:
    """The first few items, sorted, for an error message."""
    ordered = sorted(items)
    return ", ".join(map(str, ordered[:limit])) + (f" and {len(ordered) - limit} more" if len(ordered) > limit else "")
