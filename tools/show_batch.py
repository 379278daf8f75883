"""Draw training batches as the model sees them: scale, crop, flip and augmentation applied.

python tools/show_batch.py --config examples/configs/quickstart.yaml --output batch.png
"""

import itertools
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image

from rfdetr_hf import (
    DataArguments,
    ModelArguments,
    RFDETRConfig,
    RFDETRTrainingArguments,
    class_names,
    load_detection_dataset,
    parse_arguments,
)
from rfdetr_hf.drawing import COLOURS, Shape, draw_shapes
from rfdetr_hf.training.loaders import build_train_loader
from rfdetr_hf.training.multi_scale import compute_scales

GAP, LEAST_SIDE = 4, 320


@dataclass
class ShowArguments:
    """What to draw, and where."""

    output: str = field(default="batch.png", metadata={"help": "The picture; an existing file is replaced."})
    batches: int = field(default=1, metadata={"help": "Micro-batches to draw, one below the other."})
    epoch: int = field(default=0, metadata={"help": "Epoch to draw them from."})


def draw_image(pixels: torch.Tensor, boxes: torch.Tensor, labels: list[int], names: list[str]) -> Image.Image:
    """One image of a batch, small ones enlarged: pixels (3, H, W) uint8, boxes (n, 4) as (cx, cy, w, h) in [0, 1]."""
    scale = max(1, LEAST_SIDE // max(pixels.shape[1:]))
    image = Image.fromarray(pixels.permute(1, 2, 0).repeat_interleave(scale, 0).repeat_interleave(scale, 1).numpy())
    corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    corners = (corners * torch.tensor([*image.size, *image.size])).tolist()
    shapes = [Shape(box, COLOURS[k % len(COLOURS)], names[k]) for box, k in zip(corners, labels, strict=True)]
    return draw_shapes(image, shapes)


def draw_batch(batch: dict[str, Any], names: list[str]) -> Image.Image:
    """The images of a batch side by side."""
    targets = batch["labels"].unpack()
    images = []
    for pixels, target in zip(batch["pixel_values"], targets, strict=True):
        height, width = target["size"].tolist()
        labels = target["class_labels"].tolist()
        images.append(draw_image(pixels[:, :height, :width], target["boxes"], labels, names))
    canvas = Image.new("RGB", (sum(i.width + GAP for i in images) - GAP, max(i.height for i in images)), "white")
    left = 0
    for image in images:
        canvas.paste(image, (left, 0))
        left += image.width + GAP
    return canvas


def stack(rows: list[Image.Image]) -> Image.Image:
    """Pictures one below the other."""
    canvas = Image.new("RGB", (max(r.width for r in rows), sum(r.height + GAP for r in rows) - GAP), "white")
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height + GAP
    return canvas


def build_config(args: ModelArguments) -> RFDETRConfig:
    """The configuration that the run would train."""
    if args.model_name_or_path is None:
        return RFDETRConfig.from_variant(args.variant, **args.config_fields())
    stored = RFDETRConfig.from_pretrained(args.model_name_or_path, revision=args.revision)
    return stored.with_fields(**args.config_fields())


def main(argv: list[str]) -> None:
    """Load, draw, save."""
    types = (ShowArguments, ModelArguments, DataArguments, RFDETRTrainingArguments)
    args, model_args, data_args, training_args = parse_arguments(types, argv, prog="show_batch.py")
    dataset = load_detection_dataset(**data_args.load_options(model_args.task))["train"]
    config = build_config(model_args)
    training_args.dataloader_num_workers = 0
    backbone = config.backbone_config
    scales = compute_scales(
        config.resolution, backbone.patch_size, backbone.num_windows, expanded=training_args.expanded_scales
    )
    loader = build_train_loader(dataset, training_args, config, scales, PartialState(cpu=True))
    loader.batch_sampler.set_epoch(args.epoch)
    names = class_names(dataset)
    canvas = stack([draw_batch(batch, names) for batch in itertools.islice(loader, args.batches)])
    canvas.save(args.output)
    print(f"{args.output}: {canvas.width} x {canvas.height} pixels")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
