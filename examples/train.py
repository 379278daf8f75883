"""Train RF-DETR on a data set in COCO or Roboflow layout, on a Hub data set, or on synthetic shapes.

Two minutes on a CPU, nothing to download:

    accelerate launch examples/train.py --config examples/configs/quickstart.yaml

Fine-tune a published checkpoint on your own data, on one GPU or several:

    accelerate launch examples/train.py --config examples/configs/finetune.yaml \
        --dataset_name path/to/dataset --output_dir outputs/mine

Every option of the YAML file can be given on the command line, where it wins. Continue an interrupted run with
`--resume_from_checkpoint true`.
"""

import sys

from datasets import DatasetDict

from rfdetr_hf import (
    RFDETRConfig,
    RFDETRForObjectDetection,
    RFDETRImageProcessor,
    RFDETRTrainer,
    RFDETRTrainingArguments,
    load_detection_dataset,
)
from rfdetr_hf.data.schema import class_names, label_table
from rfdetr_hf.training.arguments import DataArguments, ModelArguments, parse_arguments
from rfdetr_hf.training.console import log_to_console


def build_model(args: ModelArguments, names: list[str]) -> RFDETRForObjectDetection:
    """A model for the given classes: published weights with a new class head, or a variant with random weights."""
    overrides = dict(args.config_overrides or {}) | {"id2label": dict(enumerate(names))}
    overrides |= {"label2id": {name: i for i, name in enumerate(names)}}
    if args.resolution is not None:
        overrides["resolution"] = args.resolution
    if args.model_name_or_path is None:
        return RFDETRForObjectDetection(RFDETRConfig.from_variant(args.variant, **overrides))
    return RFDETRForObjectDetection.from_pretrained(
        args.model_name_or_path, revision=args.revision, ignore_mismatched_sizes=True, **overrides
    )


def load_data(args: DataArguments) -> DatasetDict:
    """The splits of the data set, with the table of its classes printed."""
    dataset = load_detection_dataset(**args.load_options())
    print(label_table(dataset["train"]))
    return dataset


def main(argv: list[str]) -> None:
    """Parse, build, train, evaluate the test split."""
    log_to_console()
    types = (ModelArguments, DataArguments, RFDETRTrainingArguments)
    model_args, data_args, training_args = parse_arguments(types, argv, prog="train.py")

    dataset = load_data(data_args)
    model = build_model(model_args, class_names(dataset["train"]))
    side = model.config.resolution
    trainer = RFDETRTrainer(
        model,
        training_args,
        train_dataset=dataset["train"],
        eval_dataset=dataset.get("validation"),
        image_processor=RFDETRImageProcessor(size={"height": side, "width": side}),
    )
    trainer.train()
    if "test" in dataset:
        trainer.evaluate(dataset["test"], metric_key_prefix="test")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        sys.exit(f"error: {error}")
