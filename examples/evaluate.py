"""COCO metrics of a trained model on one split of a data set.

python examples/evaluate.py --model_name_or_path outputs/quickstart/best --split test
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from rfdetr_hf import (
    RFDETRForObjectDetection,
    RFDETRImageProcessor,
    RFDETRTrainer,
    RFDETRTrainingArguments,
    load_detection_dataset,
)
from rfdetr_hf.training.arguments import DataArguments, parse_arguments
from rfdetr_hf.training.console import log_to_console


@dataclass
class EvaluateArguments:
    """Which model, which split, where to write."""

    model_name_or_path: str = field(metadata={"help": "A model folder or Hub id."})
    split: str = field(default="validation", metadata={"help": "Split of the data set."})
    batch_size: int = field(default=8, metadata={"help": "Images of a batch."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the metrics; not overwritten."})


def main(argv: list[str]) -> None:
    """Load, evaluate, print."""
    log_to_console()
    args, data_args = parse_arguments((EvaluateArguments, DataArguments), argv, prog="evaluate.py")
    if args.output and Path(args.output).exists():
        raise FileExistsError(f"--output {args.output} exists; choose another name")
    model = RFDETRForObjectDetection.from_pretrained(args.model_name_or_path)
    processor = RFDETRImageProcessor.from_pretrained(args.model_name_or_path)
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    dataset = load_detection_dataset(**data_args.load_options(), class_names=names)
    if args.split not in dataset:
        raise ValueError(f"--split {args.split}: {data_args.dataset_name} has {', '.join(dataset)}")
    training_args = RFDETRTrainingArguments(per_device_train_batch_size=args.batch_size)
    trainer = RFDETRTrainer(model, training_args, eval_dataset=dataset[args.split], image_processor=processor)
    metrics = trainer.evaluate(metric_key_prefix=args.split)
    print(json.dumps(metrics, indent=2))
    if args.output:
        Path(args.output).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        sys.exit(f"error: {error}")
