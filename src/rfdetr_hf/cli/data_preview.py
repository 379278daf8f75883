"""`rfdetr-hf data preview DATA`: the training images as the model will see them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import DataArguments, ModelArguments, PreviewArguments, RFDETRTrainingArguments, parse_arguments

if TYPE_CHECKING:
    from .. import RFDETRConfig

TYPES = (PreviewArguments, ModelArguments, DataArguments, RFDETRTrainingArguments)

DESCRIPTION = """Draw the first training images as the model will see them: crop, flip, scale
and augmentation applied, with their boxes, masks and keypoints. It is the
picture train_batch.jpg of a run with the same options, and takes these.

  rfdetr-hf data preview DATA
  rfdetr-hf data preview my/data --augmentation aerial --output aerial.jpg
  rfdetr-hf data preview --config run.yaml --images 64 --preview_epoch 90
  rfdetr-hf data preview --config run.yaml --overwrite"""


def main(argv: Sequence[str], prog: str = "rfdetr-hf data preview") -> int:
    """Draw and save; returns the exit code."""
    args, model_args, data_args, training_args = parse_arguments(
        TYPES, argv, prog, DESCRIPTION, {"dataset_name": "DATA"}
    )
    args.require_new()
    data_args.require_source()
    from .. import draw_preview, load_detection_dataset, log_to_console

    log_to_console()
    config, task = model_of(model_args)
    dataset = load_detection_dataset(**data_args.load_options(task))
    canvas = draw_preview(
        dataset["train"], training_args, config, args.output, args.images, args.preview_epoch, args.overwrite
    )
    print(f"{args.output}: {canvas.width} x {canvas.height} pixels")
    return 0


def model_of(args: ModelArguments) -> "tuple[RFDETRConfig, str]":
    """The configuration that a run would train, and its task; no weights are fetched for a variant."""
    from .. import RFDETRConfig

    if args.variant is not None:
        config = RFDETRConfig.from_variant(args.variant, **args.config_fields())
        return config, RFDETRConfig.variants()[args.variant].task
    stored = RFDETRConfig.from_pretrained(str(args.model_name_or_path), revision=args.revision)
    return stored.with_fields(**args.config_fields()), args.task
