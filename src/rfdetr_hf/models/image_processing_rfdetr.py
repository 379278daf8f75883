"""Pictures in, detections out: the image processor of RF-DETR, on Pillow, NumPy and PyTorch alone."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import (
    ChannelDimension,
    PILImageResampling,
    SizeDict,
    get_image_size_for_max_height_width,
)
from transformers.processing_utils import ImagesKwargs
from transformers.utils import logging
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..bit_depth import is_deep, to_bytes
from ..choices import IMAGE_DECODERS
from ..decoding import PILLOW, open_file
from .coco_labels import coco_labels
from .files.published import checkpoint_of
from .known_fields import STORED, hint_of
from .post_processing import (
    DEFAULT_THRESHOLD,
    TRACE_ALPHA,
    Threshold,
    as_segments,
    class_slots,
    class_thresholds,
    fuse_scores,
    image_keypoints,
    image_masks,
    image_shares,
)

logger = logging.get_logger(__name__)

# Names in files beside the fields.
_BESIDE = ("value_range", "image_decoder", "image_processor_type", "processor_class", "feature_extractor_type")
_INTERPOLATION = {PILImageResampling.BILINEAR: "bilinear", PILImageResampling.BICUBIC: "bicubic"}


class RFDETRImageProcessorKwargs(ImagesKwargs, total=False):
    """What `RFDETRImageProcessor` understands beyond the fields that every image processor has."""

    antialias: bool | None
    size_divisor: int | None


class RFDETRImageProcessor(BaseImageProcessor):
    """Prepares pictures for RF-DETR and turns its raw outputs into boxes.

    Each picture becomes RGB, is multiplied by `rescale_factor`, resized in float, and normalised: the order of
    the official `predict()`. The saved `preprocessor_config.json` names `RfDetrImageProcessor`, so plain transformers
    (with torchvision) reads it; files written by that class are read here.

    A Pillow picture with an EXIF orientation is turned upright first. Boxes then refer to the upright picture: pass its
    (height, width), not the stored one, as `target_sizes`. Arrays and tensors carry no EXIF and stay unturned.

    Args:
        size: `{"height", "width"}` for an exact size; `{"shortest_edge"[, "longest_edge"]}`, `{"longest_edge"}` or
            `{"max_height", "max_width"}` to keep the aspect ratio; an int is a square. Default 384 x 384.
        antialias: Low-pass filter while shrinking. False equals the official `predict()` and transformers >= 5.18;
            transformers before 5.18 always filtered.
        do_pad: Pads pictures of different sizes at the bottom and right, with zeros after normalisation. `pixel_mask`
            (1 = picture, 0 = padding) is returned when something was padded.
        pad_size: `{"height", "width"}` to pad to; default the largest height and width of the batch.
        size_divisor: The padded height and width are rounded up to a multiple of this. The model needs
            `config.size_divisor` (patch size x windows) wherever `size` does not fix the shape.
        resample: Bilinear (default) or bicubic.
        value_range: (low, high) of Pillow pictures with more than 8 bits, which become 0 to 255, as the training data
            had it; by default each picture's own range.
        image_decoder: Who reads the JPEG files that are given by name, as in the training: "pillow" or "simplejpeg".
        do_resize, do_rescale, rescale_factor, do_normalize, image_mean, image_std, do_convert_rgb: As in every
            image processor. Floating-point pictures are rescaled too, so pass `do_rescale=False` for values in [0, 1].
    """

    valid_kwargs = RFDETRImageProcessorKwargs
    model_input_names = ["pixel_values", "pixel_mask"]

    do_convert_rgb = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_resize = True
    size = {"height": 384, "width": 384}
    resample = PILImageResampling.BILINEAR
    antialias = False
    do_normalize = True
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    do_pad = True
    size_divisor = None

    def __init__(self, **kwargs: Any) -> None:
        known = {*self.valid_kwargs.__annotations__, *_BESIDE}
        if not kwargs.pop(STORED, False) and (unknown := sorted(set(kwargs) - known)):
            raise TypeError(
                f"unknown fields {unknown} of RFDETRImageProcessor: {hint_of(unknown[0], known, type(self))}"
            )
        self.value_range: Sequence[float] | None = kwargs.pop("value_range", None)
        self.image_decoder: str = kwargs.pop("image_decoder", PILLOW)
        if self.image_decoder not in IMAGE_DECODERS:
            known = ", ".join(IMAGE_DECODERS)
            raise ValueError(f"image_decoder is {self.image_decoder!r}: it must be one of {known}.")
        if isinstance(size := kwargs.get("size"), (list, tuple)) and len(size) != 2:
            raise ValueError(f"size is {size}: it must be (height, width), one number, or a dict.")
        super().__init__(**kwargs)
        self._set_attributes(**kwargs)
        _require_colours(
            {name: getattr(self, name) for name in self.valid_kwargs.__annotations__ if hasattr(self, name)}
        )
        for name in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "do_pad", "antialias"):
            if not isinstance(getattr(self, name), (bool, type(None))):
                raise ValueError(f"{name} is {getattr(self, name)!r}: it must be true or false.")
        if self.do_resize and self.resample not in _INTERPOLATION:
            raise ValueError(f"resample is {self.resample!r}: only bilinear (2) and bicubic (3) are supported.")
        sides = [side for side in dict(self.size).values() if side is not None]
        if not sides or not all(type(side) is int and 0 < side <= 2**16 for side in sides):
            raise ValueError(f"size is {dict(self.size)}: sides are positive numbers of pixels.")

    @classmethod
    def get_image_processor_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Read `preprocessor_config.json` of a folder, a Hub repository, or a variant's published checkpoint."""
        return super().get_image_processor_dict(checkpoint_of(pretrained_model_name_or_path), **kwargs)

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A processor from the content of a `preprocessor_config.json`; fields without a meaning here are kept."""
        own = {name: kwargs.pop(name) for name in ("value_range", "image_decoder") if name in kwargs}
        return super().from_dict({**image_processor_dict, **own, STORED: True}, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The fields of the processor, under the class name that transformers knows."""
        fields = {**super().to_dict(), "image_processor_type": "RfDetrImageProcessor"}
        usual = {"value_range": None, "image_decoder": PILLOW}
        return {k: v for k, v in fields.items() if k not in usual or (v and v != usual[k])}

    def preprocess(
        self,
        images: Any,
        annotations: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepares one picture or a batch.

        Args:
            images: A picture or a list of them: Pillow, NumPy or torch, (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4
                channels, uint8 or float; a 4-D array is a batch; a string or `Path` is a file, a string
                also a URL. Alpha is dropped.
            annotations: Per picture `{"image_id": int, "annotations": [COCO objects]}` in pixels of the upright
                picture, read as those of data sets. Crowds and boxes that are empty within the picture are left out.
            **kwargs: Any field of the processor, for this call; `input_data_format` settles the channel axis where
                it can't be inferred; `return_tensors` "pt" (default) or "np"; `device` to compute on.

        Returns:
            `pixel_values` float32 (B, 3, H, W); `pixel_mask` int64 (B, H, W) when there is padding; `labels` when
            there are annotations: per picture `class_labels` (n,), `boxes` (n, 4) cxcywh in [0, 1] of the picture
            without its padding, `area` in pixels after the resize, `iscrowd`, `image_id` (1,), `orig_size` and
            `size` (height, width). The attribute `original_sizes` holds height and width of each upright picture, the
            `target_sizes` of the post-processing; it is no field, so that `model(**inputs)` does not get it.

        Raises:
            ValueError: Unusable pictures or annotations (the message names which), different sizes without `do_pad`,
                or an option that this processor does not have (`do_center_crop`, channels-last output).
            TypeError: A dtype that is neither uint8 nor floating point.
        """
        return super().preprocess(images, annotations, **kwargs)

    def _validate_preprocess_kwargs(self, **kwargs: Any) -> None:
        super()._validate_preprocess_kwargs(**kwargs)
        _require_colours(kwargs)
        if kwargs.get("do_center_crop"):
            raise ValueError("RFDETRImageProcessor does not crop: leave out do_center_crop.")
        if kwargs.get("data_format") not in (None, ChannelDimension.FIRST):
            raise ValueError(f"data_format={kwargs['data_format']!r}: RF-DETR takes channels-first pixels only.")
        if kwargs["do_resize"] and kwargs["resample"] not in _INTERPOLATION:
            raise ValueError(f"resample={kwargs['resample']!r}: only bilinear (2) and bicubic (3) are supported.")

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list[Any]:
        flat = _flatten(self.fetch_images(_opened(images, self.image_decoder)))
        if not flat:
            raise ValueError("RFDETRImageProcessor was given an empty list of images.")
        return flat

    def process_image(
        self,
        image: Image.Image | np.ndarray | Tensor,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        do_rescale: bool | None = None,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """One picture of any supported kind -> float32 (C, H, W), values as given."""
        if isinstance(image, Image.Image):
            image = _array_from_pil(image, bool(do_convert_rgb), self.value_range)
            input_data_format = ChannelDimension.LAST
        if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] in (1, 3, 4):
            # NumPy has pixels last wherever that is possible: three rows of pixels are no three channels.
            input_data_format = input_data_format or ChannelDimension.LAST
        pixels = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
        if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
            raise TypeError(f"An image has dtype {pixels.dtype}; pass uint8 (0-255) or floating point.")
        pixels = _channels_first(pixels, input_data_format).to(device)
        if not pixels.numel() or (pixels.is_floating_point() and not pixels.isfinite().all()):
            what = "holds NaN or infinity" if pixels.numel() else "has no pixels"
            raise ValueError(f"An image of the shape {tuple(pixels.shape)} {what}: leave it out.")
        if do_rescale and pixels.is_floating_point() and pixels.numel() and pixels.max() <= 1:
            logger.warning_once(
                "A floating-point image with values up to 1 is about to be multiplied by rescale_factor; "
                "pass do_rescale=False if its values are in [0, 1] already."
            )
        if do_convert_rgb:
            pixels = pixels.expand(3, -1, -1) if pixels.shape[0] == 1 else pixels[:3]
        return pixels.to(torch.float32)

    def _preprocess(
        self,
        images: list[Tensor],
        annotations: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
        do_pad: bool,
        pad_size: SizeDict | None,
        size_divisor: int | None,
        return_tensors: Any,
        **kwargs: Any,
    ) -> BatchFeature:
        if isinstance(annotations, Mapping):
            annotations = [annotations]
        if annotations is not None and len(annotations) != len(images):
            raise ValueError(f"{len(images)} images but {len(annotations)} annotations: pass one for each image.")
        original_sizes = [_size(image) for image in images]
        images = [self._model_pixels(image, **kwargs) for image in images]
        sizes = [_size(image) for image in images]
        data = _stack(images, _padded_size(sizes, pad_size, size_divisor) if do_pad else None)
        features: Any = BatchFeature(data, tensor_type=return_tensors)
        # Beside the data, so that the model is not given it: a photograph may have been turned.
        features.original_sizes = original_sizes
        if annotations is not None:
            features["labels"] = [
                BatchFeature(coco_labels(*item), tensor_type=return_tensors)
                for item in zip(annotations, original_sizes, sizes, strict=True)
            ]
        return features

    @staticmethod
    def _model_pixels(
        image: Tensor,
        do_rescale: bool,
        rescale_factor: float,
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling | int,
        antialias: bool,
        do_normalize: bool,
        image_mean: float | Sequence[float],
        image_std: float | Sequence[float],
        **kwargs: Any,
    ) -> Tensor:
        """Rescale, resize and normalise one float32 (C, H, W) picture."""
        if do_rescale:
            image = image * rescale_factor
        target = _resized_size(_size(image), size) if do_resize else _size(image)
        if target != _size(image):
            mode = _INTERPOLATION[PILImageResampling(resample)]
            image = F.interpolate(image[None], target, mode=mode, align_corners=False, antialias=bool(antialias))[0]
        if do_normalize:
            mean = torch.as_tensor(image_mean, dtype=image.dtype, device=image.device).reshape(-1, 1, 1)
            std = torch.as_tensor(image_std, dtype=image.dtype, device=image.device).reshape(-1, 1, 1)
            image = (image - mean) / std
        return image

    @torch.no_grad()
    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: Threshold = DEFAULT_THRESHOLD,
        target_sizes: Tensor | Sequence[Sequence[int]] | None = None,
        top_k: int | None = None,
    ) -> list[dict[str, Tensor]]:
        """Raw outputs -> detections per image, highest score first, as the official package makes them.

        There is no suppression of overlaps, and a query may appear with several labels. The batch is ranked at
        once; the host waits for the device a single time, and not at all with a negative threshold.

        Args:
            outputs: Has `logits` (B, Q, C) and `pred_boxes` (B, Q, 4) cxcywh in [0, 1].
            threshold: Detections with a score above it are kept; one for all classes, or one for each as a sequence or
                a dict of class ids. A NaN score is kept, so that it can't go unseen.
            target_sizes: (B, 2) height and width of the original (upright) images. Without it boxes are in [0, 1].
            top_k: Most detections per image, at most Q x C; default Q.

        Returns:
            Per image `scores` (n,), `labels` (n,) int64 and `boxes` (n, 4) xyxy, inside the image.
        """
        found = _detections(outputs, threshold, target_sizes, top_k)
        return [{name: each[name] for name in ("scores", "labels", "boxes")} for each in found]

    @torch.no_grad()
    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: Threshold = DEFAULT_THRESHOLD,
        target_sizes: Tensor | Sequence[Sequence[int]] | None = None,
        top_k: int | None = None,
        pixel_mask: Tensor | None = None,
        as_rle: bool = False,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float | None = None,
        return_binary_maps: bool = False,
    ) -> list[dict[str, Any]]:
        """Raw outputs -> detections with masks per image, see `post_process_object_detection`.

        With one of the last two arguments the result has besides what transformers' pipeline and other tools read.

        Args:
            outputs: Has `pred_masks` (B, Q, h, w) as well.
            threshold, target_sizes, top_k: As there. Without sizes the masks keep the size that the model gave them.
            pixel_mask: (B, H, W) that the model got, if it got one: the masks of padded images are cut to the image.
            as_rle: Masks as COCO run-lengths. They are encoded in chunks, so that the memory stays small.
            mask_threshold: Probability above which a pixel belongs to the object.
            overlap_mask_area_threshold: Given by transformers' pipeline: each pixel belongs to the best object alone.
                An object that keeps no pixel is left out; the value itself has no effect.
            return_binary_maps: Masks of transformers' form that may overlap.

        Returns:
            Per image `scores`, `labels`, `boxes`, and `masks`: (n, H, W) bool, or n dicts of `size` and `counts`. For
            other tools `segments_info`, for each object a dict of `id`, `label_id` and `score`, and `segmentation`:
            (H, W) int32 of these ids, -1 where there is none, or (n, H, W) bool where there are objects.
        """
        if not 0 < mask_threshold < 1:
            raise ValueError(f"mask_threshold={mask_threshold}: it is a probability between 0 and 1.")
        found = _detections(outputs, threshold, target_sizes, top_k)
        shares = image_shares(pixel_mask, len(found))
        for index, (each, share) in enumerate(zip(found, shares, strict=True)):
            logits = outputs.pred_masks[index, each.pop("queries")]
            height, width = logits.shape[-2:] if target_sizes is None else target_sizes[index]
            size = int(height), int(width)
            each["masks"] = image_masks(logits, size, share, as_rle, math.log(mask_threshold / (1 - mask_threshold)))
        if overlap_mask_area_threshold is not None or return_binary_maps:
            if as_rle:
                raise ValueError("as_rle gives run-lengths in our own form: leave it out, or the other arguments.")
            return [each | as_segments(each, return_binary_maps) for each in found]
        return found

    @torch.no_grad()
    def post_process_keypoint_detection(
        self,
        outputs: Any,
        num_keypoints_per_class: Sequence[int],
        threshold: Threshold = DEFAULT_THRESHOLD,
        target_sizes: Tensor | Sequence[Sequence[int]] | None = None,
        top_k: int | None = None,
        trace_alpha: float = TRACE_ALPHA,
    ) -> list[dict[str, Tensor]]:
        """Raw outputs -> detections with keypoints per image, see `post_process_object_detection`.

        As in the official package the detections are ranked and counted by the score of their class; that score is
        then lowered where the keypoints are uncertain, see `fuse_scores`, without ranking them again, and compared with
        the threshold.

        Args:
            outputs: Has `pred_keypoints` (B, Q, slots, 8) as well.
            num_keypoints_per_class: The schema, `model.config.num_keypoints_per_class`.
            threshold, target_sizes, top_k: As there.
            trace_alpha: How much uncertain keypoints lower the score; 0 for not at all.

        Returns:
            Per image `scores`, `labels`, `boxes` and what `image_keypoints` gives: `keypoints` (n, K, 3) of x, y and
            confidence, `keypoint_precision` (n, K, 3), `keypoint_covariance` (n, K, 2, 2).
        """
        schema, found = list(num_keypoints_per_class), []
        limits = class_thresholds(threshold, outputs.logits.shape[-1])
        for index, each in enumerate(_detections(outputs, -1, target_sizes, top_k)):
            keypoints = outputs.pred_keypoints[index, each.pop("queries")]
            keypoints, active = class_slots(keypoints, each["labels"], schema)
            each["scores"] = fuse_scores(each["scores"], keypoints, active, each["labels"], len(schema), trace_alpha)
            each |= image_keypoints(keypoints, active, (1, 1) if target_sizes is None else target_sizes[index])
            keep = ~(each["scores"] <= _least(limits, each["labels"]))
            found.append({name: value[keep] for name, value in each.items()})
        return found


def _detections(
    outputs: Any,
    threshold: Threshold,
    target_sizes: Tensor | Sequence[Sequence[int]] | None,
    top_k: int | None,
) -> list[dict[str, Any]]:
    """Per image `scores`, `labels`, `boxes` and `queries`, the rows that the detections come from."""
    limits = class_thresholds(threshold, outputs.logits.shape[-1])
    scores, labels, queries = select_top_detections(outputs.logits, top_k)
    boxes = image_boxes(outputs.pred_boxes, target_sizes)
    boxes = boxes.gather(1, queries[..., None].expand(-1, -1, 4))  # (B, k, 4)
    fields = {"scores": scores, "labels": labels, "boxes": boxes, "queries": queries}
    if isinstance(limits, float) and limits < 0:
        return [{name: value[i] for name, value in fields.items()} for i in range(len(scores))]
    keep = ~(scores <= _least(limits, labels))  # (B, k)
    if isinstance(limits, Tensor):
        # What is kept comes first, so that the host waits once, for the counts.
        order = keep.sort(dim=1, descending=True, stable=True).indices
        fields = {
            name: value.gather(1, order.reshape(*order.shape, *[1] * (value.ndim - 2)).expand_as(value))
            for name, value in fields.items()
        }
    counts = keep.sum(1).tolist()
    return [{name: value[i, :n] for name, value in fields.items()} for i, n in enumerate(counts)]


def _least(limits: float | Tensor, labels: Tensor) -> float | Tensor:
    """The threshold of each detection."""
    return limits.to(labels.device)[labels] if isinstance(limits, Tensor) else limits


def select_top_detections(logits: Tensor, top_k: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Ranks every (query, label) pair of each image by its sigmoid score.

    Ties keep the order of query x C + label: the sort is stable, where `torch.topk` promises nothing. Half-precision
    logits are scored in float32.

    Args:
        logits: (B, Q, C).
        top_k: Pairs kept per image, at most Q x C; default Q.

    Returns:
        scores, labels and query indices, each (B, k), in descending order of score.
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k}: it must be at least 1.")
    batch_size, num_queries, num_labels = logits.shape
    k = min(num_queries if top_k is None else top_k, num_queries * num_labels)
    probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid().reshape(batch_size, -1)
    scores, order = probabilities.sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :k], order[:, :k]
    return scores, order % num_labels, order // num_labels


def image_boxes(boxes: Tensor, target_sizes: Tensor | Sequence[Sequence[int]] | None = None) -> Tensor:
    """(B, Q, 4) cxcywh in [0, 1] -> xyxy clamped to the image: in pixels of `target_sizes`, else in [0, 1].

    Negative widths and heights count as zero.

    Args:
        boxes: (B, Q, 4) floating point.
        target_sizes: (B, 2) tensor, or list of B pairs, of height and width.

    Raises:
        ValueError: The sizes are not B pairs of positive numbers.
    """
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    centre, half = boxes[..., :2], boxes[..., 2:].clamp(min=0) / 2
    corners = torch.cat([centre - half, centre + half], dim=-1)
    if target_sizes is None:
        return corners.clamp(0, 1)
    if not isinstance(target_sizes, Tensor):
        pairs: list[Any] = [list(size) if hasattr(size, "__iter__") else [size] for size in target_sizes]
        target_sizes = torch.tensor([[int(side) for side in pair] for pair in pairs])
    if tuple(target_sizes.shape) != (len(boxes), 2):
        raise ValueError(
            f"target_sizes has shape {tuple(target_sizes.shape)}; {len(boxes)} images need ({len(boxes)}, 2): "
            "one (height, width) each."
        )
    if target_sizes.device.type == "cpu" and not (target_sizes > 0).all():  # elsewhere the host would wait
        raise ValueError(f"target_sizes holds {target_sizes.tolist()}: heights and widths are positive.")
    limit = target_sizes.to(boxes).flip(1).repeat(1, 2)[:, None]
    return (corners * limit).clamp(min=0).minimum(limit)


def _require_colours(fields: Mapping[str, Any]) -> None:
    """Check the numbers that change colours, as far as they are used.

    Raises:
        ValueError: One is no number, not finite, or not positive where it must be.
    """
    least_of = {"image_mean": -math.inf, "image_std": 0.0} if fields.get("do_normalize") else {}
    for name, least in {**least_of, **({"rescale_factor": 0.0} if fields.get("do_rescale") else {})}.items():
        value: Any = fields.get(name)
        several = isinstance(value, (list, tuple, np.ndarray)) and name != "rescale_factor"
        numbers, kinds = (list(value) if several else [value]), (int, float, np.floating)
        are_sound = all(type(x) is not bool and isinstance(x, kinds) and least < x < math.inf for x in numbers)
        if not are_sound or len(numbers) not in (1, 3, 4):  # of RGB and, called with it, of four channels
            above = " above 0" if least == 0 else ""
            raise ValueError(f"{name} is {value!r}: it must be a number{above}, or three of mean and std.")


def _size(image: Tensor) -> tuple[int, int]:
    height, width = image.shape[-2:]
    return height, width


def _opened(images: Any, decoder: str) -> Any:
    """The same images, with Pillow's in place of files: transformers' reader cuts those of more than 8 bits off at 255.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if isinstance(images, (list, tuple)):
        return [_opened(image, decoder) for image in images]
    if isinstance(images, os.PathLike) and not os.path.isfile(images):
        raise FileNotFoundError(f"There is no image file {os.fspath(images)}.")
    if isinstance(images, os.PathLike) or (isinstance(images, str) and os.path.isfile(images)):
        return open_file(images, decoder)
    return images


def _flatten(images: Any) -> list[Any]:
    if isinstance(images, (list, tuple)):
        return [image for item in images for image in _flatten(item)]
    if not isinstance(images, Image.Image) and images.ndim == 4:
        return list(images)
    return [images]


def _array_from_pil(image: Image.Image, convert_to_rgb: bool, value_range: Sequence[float] | None = None) -> np.ndarray:
    """An upright (H, W[, C]) uint8 array."""
    image = ImageOps.exif_transpose(image)
    if is_deep(image):
        image = Image.fromarray(to_bytes(np.asarray(image), value_range))
    if convert_to_rgb and image.mode != "RGB":
        # Pillow warns about palettes with transparency unless they pass through RGBA.
        image = image.convert("RGBA").convert("RGB") if "transparency" in image.info else image.convert("RGB")
    return np.array(image)


def _channels_first(pixels: Tensor, data_format: str | ChannelDimension | None) -> Tensor:
    if pixels.ndim == 2:
        return pixels[None]
    if pixels.ndim == 3:
        if data_format is None:
            data_format = ChannelDimension.FIRST if pixels.shape[0] in (1, 3, 4) else ChannelDimension.LAST
        pixels = pixels.permute(2, 0, 1) if data_format == ChannelDimension.LAST else pixels
        if pixels.shape[0] in (1, 3, 4):
            return pixels
    raise ValueError(
        f"An image has shape {tuple(pixels.shape)}; expected (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels."
    )


def _resized_size(image_size: tuple[int, int], size: SizeDict) -> tuple[int, int]:
    """The height and width that `size` asks for; the arithmetic of the aspect ratio is transformers' own."""
    if size.height and size.width:
        return size.height, size.width
    if size.shortest_edge:
        target = get_size_with_aspect_ratio(image_size, size.shortest_edge, size.longest_edge)
    elif size.longest_edge or (size.max_height and size.max_width):
        height, width = size.max_height or size.longest_edge or 0, size.max_width or size.longest_edge or 0
        target = get_image_size_for_max_height_width(image_size, height, width)
    else:
        raise ValueError(
            f"size={dict(size)}: give height and width, shortest_edge and/or longest_edge, or max_height and max_width."
        )
    return max(target[0], 1), max(target[1], 1)


def _padded_size(
    sizes: Sequence[tuple[int, int]], pad_size: SizeDict | None, size_divisor: int | None
) -> tuple[int, int]:
    largest = tuple(max(sides) for sides in zip(*sizes, strict=True))
    target = largest if pad_size is None else (pad_size["height"], pad_size["width"])
    if pad_size is not None and None in target:
        raise ValueError(f"pad_size={dict(pad_size)}: give height and width.")
    if size_divisor:
        target = tuple(math.ceil(side / size_divisor) * size_divisor for side in target)
    if target[0] < largest[0] or target[1] < largest[1]:
        raise ValueError(f"pad_size {target} is smaller than an image of {largest} (height, width).")
    return target


def _stack(images: Sequence[Tensor], padded_size: tuple[int, int] | None) -> dict[str, Tensor]:
    """Pictures -> `pixel_values`, and `pixel_mask` where one of them is smaller than the batch."""
    sizes = {_size(image) for image in images}
    if padded_size is None and len(sizes) > 1:
        raise ValueError(
            f"Images of different sizes {sorted(sizes)} (height, width) can't be stacked: "
            "set do_pad=True, or size with height and width."
        )
    if padded_size is None or sizes == {padded_size}:
        return {"pixel_values": torch.stack(list(images))}
    pixel_values = images[0].new_zeros(len(images), images[0].shape[0], *padded_size)
    pixel_mask = torch.zeros(len(images), *padded_size, dtype=torch.int64, device=pixel_values.device)
    for row, mask, image in zip(pixel_values, pixel_mask, images, strict=True):
        height, width = _size(image)
        row[:, :height, :width] = image
        mask[:height, :width] = 1
    return {"pixel_values": pixel_values, "pixel_mask": pixel_mask}
