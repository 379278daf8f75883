"""What happens to an image and its objects between decoding and the batch."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image

from ..keypoints import KeypointSchema
from ..masks import rasterise
from .augmentation import Step, build_steps, strong_members
from .composition import Cell, Look, cell_view, copy_paste, mixup, mosaic
from .pixels import pil_from_pixels
from .presets import DEFAULT, read_augmentation
from .user_augmentation import adapt_augmentation
from .view import Others, Sample, View

__all__ = ["EvalTransform", "Sample", "TrainTransform", "build_eval_transform", "build_train_transform"]

logger = logging.getLogger(__name__)

CROP_PROBABILITY = 0.5
MIN_MOSAIC = 8  # pixels
MultiScaleMode = Literal["per_batch", "per_sample", "off"]


def fit_shortest_edge(height: int, width: int, shortest: int, max_size: int | None = None) -> tuple[int, int]:
    """Size (height, width) of the same aspect ratio with the given shortest edge, or a longest edge of `max_size`."""
    short, long = min(height, width), max(height, width)
    if max_size is not None and shortest * long > max_size * short:
        shortest = max(1, round(max_size * short / long))
    longest = max(1, int(shortest * long / short))
    return (shortest, longest) if height <= width else (longest, shortest)


MAX_SIZE = 1333


@dataclass
class TrainTransform:
    """The official training recipe: resize, or scale-jittered square crop and resize; mirror; augmentations.

    The image passes one of two branches, each with probability 1/2 (always the first without `scale_jitter`):

    * all of the image, resized to (s, s), or with `square=False` to a shortest edge s and a longest of at most
      `max_size`;
    * a square crop, resized to (s, s). The official recipe resizes to a shortest edge r of 400, 500 or 600, then cuts a
      square with a side between 384 and r. Only the ratio of the two matters: it says how much of the shortest edge is
      seen, 64 % to all of it. The crop is therefore taken from the source in one resampling, and the constants need no
      adjustment to the resolution or to the size of the images.

    s is one of `sizes`, at random, and the result is mirrored with probability `horizontal_flip`.

    The augmentations see the resized image, as in the official recipe: their cost does not depend on the size of the
    source. If they change the size of a square image, the image is resized to (s, s) again. First come the members of
    the preset that join several images (mosaic, mixup, copy-paste), then its flips and turns, then its members of
    torchvision, then the user's.

    Attributes:
        sizes: sides in pixels, of which each sample gets one.
        scale_jitter: half of the samples see a random square crop.
        horizontal_flip: probability of a mirrored image.
        augmentation: an Albumentations or torchvision-v2 transform, or a function (image, target) -> (image, target);
            see `rfdetr_hf.data.pipeline.user_augmentation.adapt_augmentation`.
        square: resize to a square; otherwise keep the aspect ratio.
        max_size: with `square=False`, the largest longest edge.
        crop_shortest_edges, crop_min_side: as said above.
        mask_size: height and width of the masks; None leaves them out.
        keypoint_schema: of the data set, for its mirror pairs.
        members: transforms of a preset, as `read_augmentation` gives them; its geometry is in the fields above.
        strong_until: the epoch from which on no images are joined.
    """

    sizes: Sequence[int]
    scale_jitter: bool = True
    horizontal_flip: float = 0.5
    augmentation: Any = None
    square: bool = True
    max_size: int = MAX_SIZE
    crop_shortest_edges: Sequence[int] = (400, 500, 600)
    crop_min_side: int = 384
    mask_size: tuple[int, int] | None = None
    keypoint_schema: KeypointSchema | None = None
    members: Mapping[str, Any] | None = None
    strong_until: float = math.inf

    def __post_init__(self) -> None:
        self.sizes, self.crop_shortest_edges = tuple(self.sizes), tuple(self.crop_shortest_edges)
        self.flip_index = None if self.keypoint_schema is None else self.keypoint_schema.flip_index
        self.strong = strong_members(self.members or {})
        self.steps: list[Step] = build_steps(self.members or {}, self.flip_index)
        if self.augmentation is not None:
            self.steps.append(adapt_augmentation(self.augmentation, self.flip_index))

    @property
    def needs_others(self) -> bool:
        """Whether samples are made of several images, so that a call needs `others`."""
        return bool(self.strong)

    def __call__(self, sample: Sample, rng: np.random.Generator, others: Others | None = None) -> Sample:
        """Transform one sample.

        Args:
            sample: an image, and boxes in pixels of `orig_size`.
            rng: the only source of randomness.
            others: the other images of the data set.

        Returns:
            The sample with its new pixels, uint8 (3, H, W), and boxes in them.

        Raises:
            ValueError: images are to be joined, and there are no others.
        """
        view = self.draw_view(*sample.orig_size, rng)
        strong = self.strong if others is None or others.epoch < self.strong_until else {}
        if not self.steps and not strong:
            return self._apply(view, sample, sample.image, self.mask_size)
        # Augmentations move masks pixel by pixel with the image, so they come at the image's size and shrink later.
        sample = self._joined(strong, view, sample, rng, others)
        for step in self.steps:
            sample = step(sample, rng)
        height, width = sample.image.shape[1:]
        if self.square and (width, height) != (view.width, view.height):
            restore = View(0, 0, width, height, view.width, view.height)
            return self._apply(restore, sample, pil_from_pixels(sample.image), self.mask_size)
        shrink = View(0, 0, width, height, width, height)
        return sample.with_image(sample.image, shrink.map_objects(sample.target, mask_size=self.mask_size))

    def _joined(
        self, strong: Mapping[str, Any], view: View, sample: Sample, rng: np.random.Generator, others: Others | None
    ) -> Sample:
        """The view of a sample, joined with other images as the strong members say; masks at the size of the image."""

        labelled: list[np.ndarray] = []

        def on_pixels(view: View, sample: Sample) -> Sample:
            if sample.labelled is not None:
                labelled.append(sample.labelled)
            return self._apply(view, sample, sample.image, self.mask_size and (view.height, view.width))

        if not strong:
            return on_pixels(view, sample)
        if others is None:
            raise ValueError(f"{', '.join(strong)} join several images: hand the other images of the data set over")

        def in_cell(cell: Cell) -> Callable[[Sample], Sample]:
            share = rng.uniform(*strong["mosaic"]["scale"])
            flip = bool(rng.random() < self.horizontal_flip)
            return lambda sample: on_pixels(cell_view(sample, cell, share, flip, rng), sample)

        def alike(other: Sample) -> Sample:
            if not self.square:
                flip = bool(rng.random() < self.horizontal_flip)
                return on_pixels(cell_view(other, Cell(0, 0, view.width, view.height), 1.0, flip, rng), other)
            drawn = self.draw_view(*other.orig_size, rng)
            return on_pixels(replace(drawn, width=view.width, height=view.height), other)

        look: Look = lambda see: others.visit(others.draw(rng), see)  # noqa: E731
        fired = {name: values for name, values in strong.items() if rng.random() < values["probability"]}
        if "mosaic" in fired and min(view.height, view.width) >= MIN_MOSAIC:
            sample = mosaic(sample, (view.height, view.width), in_cell, look, rng)
        else:
            sample = on_pixels(view, sample)
        if "mixup" in fired:
            sample = mixup(sample, alike, look, rng, fired["mixup"]["alpha"])
        if "copy_paste" in fired:
            sample = copy_paste(sample, alike, look, rng, int(fired["copy_paste"]["max_objects"]))
        # What one of the images does not label may be there without a box.
        return replace(sample, labelled=np.logical_and.reduce(labelled)) if labelled else sample

    def _apply(self, view: View, sample: Sample, image: Image.Image, mask_size: tuple[int, int] | None) -> Sample:
        target = view.map_objects(sample.target, mask_size=mask_size, flip_index=self.flip_index)
        return sample.with_image(view.render(image), target)

    def draw_view(self, height: int, width: int, rng: np.random.Generator) -> View:
        """Choose what is seen of an image of this size, before any pixel is decoded."""
        crop = self.scale_jitter and rng.random() < CROP_PROBABILITY
        size = self.sizes[int(rng.integers(len(self.sizes)))]
        if crop:
            region = self._draw_crop(height, width, rng)
            size = size if self.square else min(size, self.max_size)
            out_height = out_width = size
        else:
            region = (0, 0, width, height)
            out_height, out_width = size, size
            if not self.square:
                out_height, out_width = fit_shortest_edge(height, width, size, self.max_size)
        return View(*region, out_width, out_height, flip=bool(rng.random() < self.horizontal_flip))

    def _draw_crop(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        shortest = self.crop_shortest_edges[int(rng.integers(len(self.crop_shortest_edges)))]
        grid_height, grid_width = fit_shortest_edge(height, width, shortest)
        largest = min(max(self.crop_shortest_edges), grid_height, grid_width)
        side = int(rng.integers(min(self.crop_min_side, largest), largest, endpoint=True))
        top = int(rng.integers(0, grid_height - side, endpoint=True))
        left = int(rng.integers(0, grid_width - side, endpoint=True))
        scale_x, scale_y = width / grid_width, height / grid_height
        right, bottom = round((left + side) * scale_x), round((top + side) * scale_y)
        # Whole pixels, which are faster to resample; at least one of them in images that are nearly a line.
        return min(round(left * scale_x), right - 1), min(round(top * scale_y), bottom - 1), right, bottom


def build_train_transform(
    resolution: int,
    scales: Sequence[int] = (),
    *,
    multi_scale: MultiScaleMode = "per_batch",
    preset: str | Mapping[str, Any] = DEFAULT,
    horizontal_flip: float | None = None,
    scale_jitter: bool | None = None,
    mask_downsample_ratio: int | None = None,
    keypoint_schema: KeypointSchema | None = None,
    **recipe: Any,
) -> TrainTransform:
    """The training transform of a multi-scale mode.

    Args:
        resolution: the side in pixels to train at without multi-scale.
        scales: the sides to train at with multi-scale.
        multi_scale: "per_batch" resizes every sample to the largest scale, and the batch is resized on the device, to
            the scale of the step; "per_sample" chooses a scale per sample, and the batch is padded; "off" resizes to
            `resolution`.
        preset: name of a preset, or a mapping over one, see `rfdetr_hf.data.pipeline.presets.read_augmentation`.
        horizontal_flip: probability of a mirrored image; default: the preset's.
        scale_jitter: half of the samples see a random square crop; default: the preset's.
        mask_downsample_ratio: make masks, this many times smaller than the largest image; None leaves them out. They
            are as many pixels wide as high for every image, also with `square=False`, and show the complete image
            without its padding.
        keypoint_schema: of the data set, for its mirror pairs. Where it knows none, images are not mirrored.
        recipe: further fields of `TrainTransform`.

    Raises:
        ValueError: for an unknown mode or preset, a mode without scales, or numbers out of range.
        ImportError: the preset needs torchvision.
    """
    members = read_augmentation(preset)
    horizontal_flip = float(members["horizontal_flip"] if horizontal_flip is None else horizontal_flip)
    if multi_scale not in ("per_batch", "per_sample", "off"):
        raise ValueError(f"multi_scale must be 'per_batch', 'per_sample' or 'off', got {multi_scale!r}")
    sizes = [resolution] if multi_scale == "off" else sorted(scales)
    if not sizes or sizes[0] < 1:
        raise ValueError(f"multi_scale={multi_scale!r} needs sides of at least one pixel, got {sizes}: pass scales")
    if not 0 <= horizontal_flip <= 1:
        raise ValueError(f"horizontal_flip is a probability, got {horizontal_flip}")
    unpaired = keypoint_schema is not None and keypoint_schema.flip_index is None
    if unpaired and (horizontal_flip or "vertical_flip" in members):
        logger.warning("images are not mirrored: it is not known which keypoints change places (flip_pairs)")
        horizontal_flip = 0.0
        members.pop("vertical_flip", None)
    return TrainTransform(
        sizes[-1:] if multi_scale == "per_batch" else sizes,
        horizontal_flip=horizontal_flip,
        scale_jitter=members["scale_jitter"] if scale_jitter is None else scale_jitter,
        members=members,
        mask_size=_mask_size(sizes[-1], mask_downsample_ratio),
        keypoint_schema=keypoint_schema,
        **recipe,
    )


def _mask_size(largest: int, ratio: int | None) -> tuple[int, int] | None:
    if ratio is None:
        return None
    if ratio < 1:
        raise ValueError(f"mask_downsample_ratio must be at least 1, got {ratio}")
    side = -(-largest // ratio)
    return side, side


class EvalTransform:
    """The pixels of the predict path: the image processor does all the work, boxes follow it.

    Crowd objects and objects outside the image stay: evaluation reads the truth as it was annotated.
    """

    def __init__(self, image_processor: Callable[..., Any], *, mask_size: tuple[int, int] | None = None) -> None:
        self.image_processor = image_processor
        self.mask_size = mask_size

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> Sample:
        """Transform one sample; `rng` is not used."""
        # The collator pads, to the shape of the batch.
        options = {} if _has_fixed_size(self.image_processor) else {"do_pad": False}
        image = sample.image
        # The decoder has decided whether the orientation tag holds. One that it ignored must not be obeyed downstream.
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = Image.fromarray(np.asarray(image))
        pixels = self.image_processor(images=image, return_tensors="pt", **options)["pixel_values"][0]
        height, width = sample.orig_size
        scale = np.array([pixels.shape[2] / width, pixels.shape[1] / height])
        boxes = (sample.target["boxes"] * np.tile(scale, 2)).astype(np.float32)
        target = {**sample.target, "boxes": boxes, "area": (sample.target["area"] * scale.prod()).astype(np.float32)}
        if "keypoints" in target:
            target["keypoints"] = (target["keypoints"] * (*scale, 1)).astype(np.float32)
        segmentation = target.pop("segmentation", None)
        if segmentation is not None and self.mask_size is not None:
            target["masks"] = rasterise(segmentation, (0, 0, width, height), self.mask_size)
        return sample.with_image(pixels, target)


def build_eval_transform(
    image_processor: Callable[..., Any], *, mask_downsample_ratio: int | None = None
) -> EvalTransform:
    """The evaluation transform around an image processor.

    Args:
        image_processor: called as `image_processor(images=image, return_tensors="pt")`; its `pixel_values` (1, 3, H,
            W) are taken as they are. One whose `size` is no height and width but keeps the aspect ratio is also given
            `do_pad=False`.
        mask_downsample_ratio: make masks for a loss, this many times smaller than the processor's size; None leaves
            them out. Metrics need none, since they read the annotations.
    """
    if mask_downsample_ratio is None:
        return EvalTransform(image_processor)
    size = image_processor.size
    side = max(size["height"], size["width"]) if _has_fixed_size(image_processor) else size["shortest_edge"]
    return EvalTransform(image_processor, mask_size=_mask_size(side, mask_downsample_ratio))


def _has_fixed_size(image_processor: Callable[..., Any]) -> bool:
    return image_processor.size.get("height") is not None
