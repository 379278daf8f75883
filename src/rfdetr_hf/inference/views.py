"""More looks at an image: flipped and scaled views, tiles of large images, and how their boxes become one.

A detector takes a list of PIL images and returns for each a dict `scores` (n,), `labels` (n,), `boxes` (n, 4) xyxy in
pixels of that image. The ones here wrap another, and work with any.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..arguments.views import ViewArguments
from ..bit_depth import upright_rgb
from ..decoding import PILLOW
from ..evaluation.run import Detector, Found
from .detector import ImageDetector

_FIELDS = ("scores", "labels", "boxes")
# A box may be cut by a border that is nearer than this share of its own side, as far as detectors err, and of the
# frame's side; but within so many pixels in any case.
_NEAR_BOX, _NEAR_BORDER, _NEAR_PIXELS = 0.25, 0.03, 2.0


def with_views(detect: ImageDetector, args: ViewArguments, batch_size: int = 8) -> Detector:
    """A detector that looks as `args` say.

    Args:
        detect: of a model.
        args: flip, scales, tiles.
        batch_size: tiles that the model gets at once.

    Raises:
        ValueError: the model gives masks or keypoints, and `args` ask for more than a plain look.
    """
    args.check_task(detect.model.task)
    top_k = detect.model.config.num_queries
    found: Detector = AugmentedDetector(detect, args.flip, args.scales, top_k=top_k) if args.fuses else detect
    return TiledDetector(found, args.tile, args.tile_overlap, batch_size=batch_size) if args.tile else found


class AugmentedDetector:
    """Detections fused over views of an image: mirrored, and at other input sizes.

    Args:
        detect: a detector of boxes; called with `scale=` for scales other than 1.
        flip: add the mirror image of each view.
        scales: input sizes as shares of the detector's own.
        iou: overlap from which detections of different views are one object.
        top_k: detections kept per image.

    Raises:
        ValueError: no scale, or one that is not positive.
    """

    def __init__(
        self, detect: Detector, flip: bool = True, scales: Sequence[float] = (1.0,), iou: float = 0.55, top_k: int = 300
    ) -> None:
        if not scales or min(scales) <= 0:
            raise ValueError(f"scales {list(scales)}: give one or more positive numbers.")
        self.detect, self.flip, self.scales, self.iou, self.top_k = detect, flip, tuple(scales), iou, top_k

    @property
    def value_range(self) -> Sequence[float] | None:
        """As of the detector that is wrapped."""
        return getattr(self.detect, "value_range", None)

    @property
    def image_decoder(self) -> str:
        """As of the detector that is wrapped."""
        return getattr(self.detect, "image_decoder", PILLOW)

    @property
    def model_labels(self) -> list[str] | None:
        """As of the detector that is wrapped."""
        return getattr(self.detect, "model_labels", None)

    def __call__(self, images: Sequence[Image.Image]) -> list[Found]:
        """Fused detections of each image, best first; images as for the detector that is wrapped."""
        images = [_upright(image, self.detect) for image in images]
        views = []
        for scale in self.scales:
            options = {} if scale == 1 else {"scale": scale}
            views.append(self.detect(images, **options))
            if self.flip:
                mirrored = self.detect([ImageOps.mirror(image) for image in images], **options)
                views.append([_unmirrored(each, image.width) for each, image in zip(mirrored, images, strict=True)])
        return [fuse_views(each, self.iou, self.top_k) for each in zip(*views, strict=True)]


class TiledDetector:
    """Detections of an image and of overlapping tiles of it, for small objects on large images.

    Args:
        detect: a detector of boxes.
        tile: side of a tile in pixels; images that fit into one tile are not cut.
        overlap: share of a tile that its neighbour covers too; objects up to that size are whole in some tile.
        iou: overlap from which two detections of a class are one.
        top_k: detections kept per image; None keeps all, as many as the model finds in each tile.
        batch_size: tiles that the detector gets at once.

    Raises:
        ValueError: a tile below 32 pixels, or an overlap outside [0, 0.9].
    """

    def __init__(
        self,
        detect: Detector,
        tile: int = 640,
        overlap: float = 0.2,
        iou: float = 0.5,
        top_k: int | None = None,
        batch_size: int = 8,
    ) -> None:
        if tile < 32 or not 0 <= overlap <= 0.9:
            raise ValueError(f"tile={tile}, overlap={overlap}: tiles have 32 pixels or more, overlap is in [0, 0.9].")
        self.detect, self.tile, self.overlap, self.iou = detect, tile, overlap, iou
        self.top_k, self.batch_size = top_k, batch_size

    @property
    def value_range(self) -> Sequence[float] | None:
        """As of the detector that is wrapped."""
        return getattr(self.detect, "value_range", None)

    @property
    def image_decoder(self) -> str:
        """As of the detector that is wrapped."""
        return getattr(self.detect, "image_decoder", PILLOW)

    @property
    def model_labels(self) -> list[str] | None:
        """As of the detector that is wrapped."""
        return getattr(self.detect, "model_labels", None)

    def __call__(self, images: Sequence[Image.Image]) -> list[Found]:
        """Merged detections of each image, best first; images as for the detector that is wrapped."""
        # At the door: a tile has no tag that says how the picture is turned, and not the range of all of it.
        return [self._merged(_upright(image, self.detect)) for image in images]

    def _merged(self, image: Image.Image) -> Found:
        frames = tile_frames(image.width, image.height, self.tile, self.overlap)
        found = []
        for start in range(0, len(frames), self.batch_size):
            batch = frames[start : start + self.batch_size]
            for frame, each in zip(batch, self.detect([image.crop(frame) for frame in batch]), strict=True):
                _only_boxes([each])
                offset = torch.tensor([*frame[:2], *frame[:2]], dtype=each["boxes"].dtype)
                found.append({**each, "boxes": each["boxes"] + offset})
        return merge_tiles(found, frames, image.size, self.iou, self.top_k)


def tile_frames(width: int, height: int, tile: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """The whole image, then tiles (left, top, right, bottom) that cover it; the last of a row ends at the border."""
    whole = (0, 0, width, height)
    if width <= tile and height <= tile:
        return [whole]
    columns, rows = _starts(width, tile, overlap), _starts(height, tile, overlap)
    return [whole] + [(x, y, min(x + tile, width), min(y + tile, height)) for y in rows for x in columns]


def fuse_views(views: Sequence[Found], iou: float = 0.55, top_k: int = 300) -> Found:
    """Weighted box fusion (Solovyev et al. 2021, arXiv:1910.13302) within each class.

    In the order of the scores each detection joins the object it overlaps most, if that is by `iou` and the object has
    none of its view yet, or else starts an object. An object's box is the mean of its detections weighted by their
    scores; its score is their sum over the number of views, so that what one view alone sees counts less.
    """
    _only_boxes(views)
    scores, labels, boxes = (torch.cat([view[name] for view in views]).double().numpy() for name in _FIELDS)
    view = np.repeat(np.arange(len(views)), [len(each["scores"]) for each in views])
    order = np.argsort(-scores, kind="stable")
    fused, weight, label, seen = np.zeros((len(order), 4)), np.zeros(len(order)), np.full(len(order), -1.0), []
    for i in order:
        near = np.where(label[: len(seen)] == labels[i], _iou(boxes[i], fused[: len(seen)]), 0.0)
        near[[n for n in np.flatnonzero(near >= iou) if view[i] in seen[n]]] = 0.0
        at = int(near.argmax()) if len(near) and near.max() >= iou else len(seen)
        if at == len(seen):
            seen.append(set())
        label[at] = labels[i]
        share = scores[i] / (weight[at] + scores[i]) if scores[i] > 0 else float(not seen[at])
        fused[at] += share * (boxes[i] - fused[at])
        weight[at] += scores[i]
        seen[at].add(view[i])
    count = len(seen)
    best = np.argsort(-weight[:count], kind="stable")[:top_k]
    return _as_tensors(weight[best] / len(views), label[best], fused[best])


def merge_tiles(
    found: Sequence[Found],
    frames: Sequence[tuple[int, int, int, int]],
    size: tuple[int, int],
    iou: float = 0.5,
    top_k: int | None = None,
) -> Found:
    """Joins what several frames of an image show of one object; detections of one frame stay apart.

    A box near the border of its frame may be cut there: the object may end where the box does, at the border, or beyond
    it. So each side of a box is either known or only a bound. Frame by frame a detection joins an object of its class
    that a neighbouring frame shows, if it fits: the completed box (each side as some detection knows it, else the
    outermost bound), cut to the frame of each detection of the object, overlaps that detection by `iou`, so that every
    frame has seen what it would see of such an object; a side that is a bound counts as where it fits best, up to the
    border. An object has the best of its detections' scores, and the box of the best that is not cut, or else the
    completed box.

    Args:
        found: for each frame `scores`, `labels`, `boxes` in pixels of the image.
        frames: (left, top, right, bottom) in pixels of the image.
        size: (width, height) of the image.
        iou: overlap from which a detection is what its frame shows of an object.
        top_k: objects kept; None keeps all.
    """
    frame_of = np.repeat(np.arange(len(frames)), [len(each["scores"]) for each in found])
    scores, labels, boxes = (torch.cat([each[name] for each in found]).double().numpy() for name in _FIELDS)
    order = np.lexsort((-scores, frame_of))
    frame_of, scores, labels, boxes = frame_of[order], scores[order], labels[order], boxes[order]
    borders = np.array(frames, dtype=np.float64).reshape(-1, 4)
    inner = borders != np.array([0, 0, *size])
    sides, frame_sides = boxes[:, 2:] - boxes[:, :2], (borders[:, 2:] - borders[:, :2])[frame_of]
    reach = np.tile(np.minimum(_NEAR_BOX * sides, _NEAR_BORDER * frame_sides).clip(_NEAR_PIXELS), 2)
    cut = inner[frame_of] & (np.abs(boxes - borders[frame_of]) < reach)
    # A cut box may go up to the border, and a little beyond, so that frames that only touch see each other's boxes.
    borders = borders + inner * np.array([-1, -1, 1, 1])
    outer = np.where(cut, borders[frame_of], boxes)
    low, high = np.maximum(borders[:, None, :2], borders[:, :2]), np.minimum(borders[:, None, 2:], borders[:, 2:])
    neighbours = (low <= high).all(axis=2)
    objects = _Objects(boxes, outer, borders[frame_of], frame_of, labels, scores, neighbours, iou)
    for frame, beside in enumerate(neighbours):
        own = slice(*np.searchsorted(frame_of, [frame, frame + 1]).tolist())
        # What a frame itself begins or joins is none of its candidates: they stay the same for all of it.
        near = {label: objects.shown_by(beside, label) for label in np.unique(labels[own]).tolist()}
        for i in range(own.start, own.stop):
            objects.add([i], boxes[i], cut[i], near[labels[i]])
    objects.join_open()
    best, joined = [], []
    for members, hull in objects.members():
        ranked = sorted(members, key=lambda k: -scores[k])
        best.append(ranked[0])
        joined.append(next((boxes[k] for k in ranked if not cut[k].any()), hull))
    chosen = np.argsort(-scores[best], kind="stable")[:top_k]
    best, joined = np.array(best, dtype=np.int64)[chosen], np.array(joined).reshape(-1, 4)[chosen]
    return _as_tensors(scores[best], labels[best], joined.clip(0, np.tile(size, 2)))


class _Objects:
    """The objects that detections (n of them) were joined to; see `merge_tiles`.

    Args:
        boxes, outer, borders: (n, 4) of the detections, as they are and as far as they may go, and of their frames.
        frame_of, labels, scores: (n,).
        neighbours: (frames, frames) bool.
        iou: overlap from which a detection fits.
    """

    def __init__(
        self,
        boxes: np.ndarray,
        outer: np.ndarray,
        borders: np.ndarray,
        frame_of: np.ndarray,
        labels: np.ndarray,
        scores: np.ndarray,
        neighbours: np.ndarray,
        iou: float,
    ) -> None:
        self.boxes, self.outer, self.borders, self.frame_of = boxes, outer, borders, frame_of
        self.labels, self.scores = labels, scores
        self.neighbours, self.iou = neighbours, iou
        self._members: list[list[int]] = []
        # Each detection may begin an object, and each of these begin again in `join_open`.
        room = 2 * len(boxes)
        self._hulls, self._open = np.zeros((room, 4)), np.zeros((room, 4), dtype=bool)
        self._reach = np.zeros((room, 4))  # hulls without end where a side is open
        self._scores = np.zeros(room)
        self._shown: dict[tuple[int, float], set[int]] = {}  # by frame and class
        self._seen = np.zeros((room, len(neighbours)), dtype=bool)

    def shown_by(self, frames: np.ndarray, label: float) -> np.ndarray:
        """The objects of a class that some of the frames (a mask of them) show, in the order of their beginning."""
        shown = (self._shown.get((frame, label), ()) for frame in np.flatnonzero(frames).tolist())
        return np.array(sorted(set().union(*shown)), dtype=np.int64)

    def add(self, members: list[int], box: np.ndarray, cut: np.ndarray, near: np.ndarray) -> None:
        """Detections that are one object, whose sides `cut` are only bounds, join one of those `near` or begin one."""
        count, seen = len(self._members), np.zeros(len(self.neighbours), dtype=bool)
        seen[self.frame_of[members]] = True
        reach, outer = self._reach[near], self.outer[members[0]]
        touch = (reach[:, :2] <= outer[2:]).all(axis=1) & (reach[:, 2:] >= outer[:2]).all(axis=1)
        near = near[np.flatnonzero(touch)]
        near = near[~self._seen[near][:, seen].any(axis=1)]
        hulls, still_open = self._hulls[near], self._open[near]
        outermost = np.concatenate([np.minimum(hulls[:, :2], box[:2]), np.maximum(hulls[:, 2:], box[2:])], axis=1)
        completed = np.where(still_open & cut, outermost, np.where(still_open, box[None], hulls))
        fits = np.ones(len(near))
        for k in members if len(near) else ():
            fits = np.minimum(fits, self._fit(k, completed))
        candidates = np.flatnonzero(fits >= self.iou)
        at, hull, is_open = count, box, cut
        for n in candidates[np.argsort(-(fits * self._scores[near])[candidates], kind="stable")].tolist():
            if min(self._fit(k, completed[[n]])[0] for k in self._members[near[n]]) >= self.iou:
                at, hull, is_open = int(near[n]), completed[n], still_open[n] & cut
                break
        if at == count:
            self._members.append([])
        self._members[at] += members
        self._hulls[at], self._open[at] = hull, is_open
        self._reach[at] = np.where(is_open, [-np.inf, -np.inf, np.inf, np.inf], hull)
        self._seen[at] |= seen
        for frame in set(self.frame_of[members].tolist()):
            self._shown.setdefault((frame, self.labels[members[0]]), set()).add(at)
        self._scores[at] = self.scores[self._members[at]].max()

    def _fit(self, k: int, completed: np.ndarray) -> np.ndarray:
        """(m,) overlap of a detection with what its frame shows of objects (m, 4)."""
        frame, box, outer = self.borders[k], self.boxes[k], self.outer[k]
        shown = completed.clip(np.tile(frame[:2], 2), np.tile(frame[2:], 2))
        # A side that is only a bound may lie anywhere up to the border.
        nearest = shown.clip(np.minimum(box, outer), np.maximum(box, outer))
        return _iou(nearest, shown)

    def join_open(self) -> None:
        """Give objects with open sides, which may be pieces of one, a second chance to find each other."""
        for at in np.flatnonzero(self._open.any(axis=1)).tolist():
            members, self._members[at] = self._members[at], []
            self._seen[at], self._scores[at] = False, 0
            frames, label = sorted(set(self.frame_of[members].tolist())), float(self.labels[members[0]])
            for frame in frames:
                self._shown[frame, label].remove(at)
            near = self.shown_by(np.any(self.neighbours[frames], axis=0, keepdims=True)[0], label)
            self.add(members, self._hulls[at].copy(), self._open[at].copy(), near)

    def members(self) -> Iterator[tuple[list[int], np.ndarray]]:
        """The detections and the completed box of each object."""
        return ((each, self._hulls[at]) for at, each in enumerate(self._members) if each)


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    step = max(round(tile * (1 - overlap)), 1)
    last = max(length - tile, 0)
    return [*range(0, last, step), last]


def _upright(image: Image.Image, detect: Detector) -> Image.Image:
    """A picture as the model sees it; other kinds, of other detectors, as they are."""
    return upright_rgb(image, getattr(detect, "value_range", None)) if isinstance(image, Image.Image) else image


def _unmirrored(found: Found, width: int) -> Found:
    boxes = found["boxes"].clone()
    boxes[:, [0, 2]] = width - found["boxes"][:, [2, 0]]
    return {**found, "boxes": boxes}


def _only_boxes(views: Sequence[Mapping[str, Tensor]]) -> None:
    extra = sorted({name for view in views for name in view} & {"masks", "keypoints"})
    if extra:
        raise ValueError(f"Views and tiles are merged for boxes alone, but the detector gives {', '.join(extra)}.")


def _iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(m,) of one box, or of m, with m others."""
    sides = np.minimum(box[..., 2:], others[:, 2:]) - np.maximum(box[..., :2], others[:, :2])
    shared = np.maximum(sides, 0).prod(axis=1)
    own, their = (box[..., 2:] - box[..., :2]).prod(axis=-1), (others[:, 2:] - others[:, :2]).prod(axis=1)
    union = own + their - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _as_tensors(scores: np.ndarray, labels: np.ndarray, boxes: np.ndarray) -> Found:
    return {
        "scores": torch.from_numpy(scores).float(),
        "labels": torch.from_numpy(labels).long(),
        "boxes": torch.from_numpy(boxes).float(),
    }


def _to_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value
