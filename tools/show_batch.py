"""Draw training batches as the model sees them: scale, crop, flip and augmentation applied.

python tools/show_batch.py --config examples/configs/quickstart.yaml --output batch.png
"""

import itertools
import sys
from dataclasses import dataclass, field

from accelerate import PartialState

from rfdetr_hf import (
    DataArguments,
    ModelArguments,
    RFDETRConfig,
    RFDETRTrainingArguments,
    class_names,
    load_detection_dataset,
    parse_arguments,
)
from rfdetr_hf.drawing import draw_batch, mosaic
from rfdetr_hf.training.loaders import build_train_loader
from rfdetr_hf.training.multi_scale import compute_scales


@dataclass
class ShowArguments:
    """What to draw, and where."""

    output: str = field(default="batch.png", metadata={"help": "The picture; an existing file is replaced."})
    batches: int = field(default=1, metadata={"help": "Micro-batches to draw, one below the other."})
    epoch: int = field(default=0, metadata={"help": "Epoch to draw them from."})
    side: int = field(default=480, metadata={"help": "Longer side of each image in the picture."})


def build_config(args: ModelArguments) -> RFDETRConfig:
    """The configuration that the run would train."""
    if args.from_scratch:
        return RFDETRConfig.from_variant(str(args.variant), **args.config_fields())
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
    pictures = []
    for batch in itertools.islice(loader, args.batches):
        pictures += draw_batch(batch["pixel_values"], batch["labels"].unpack(), names, side=args.side)
    canvas = mosaic(pictures, columns=training_args.per_device_train_batch_size)
    canvas.save(args.output)
    print(f"{args.output}: {canvas.width} x {canvas.height} pixels")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
