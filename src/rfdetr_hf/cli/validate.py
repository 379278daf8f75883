"""`rfdetr-hf validate` and `rfdetr-hf test`: COCO metrics of a trained model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..data.sources import load_detection_dataset
from ..models.auto import load_model
from ..models.image_processing_rfdetr import RFDETRImageProcessor
from ..training.arguments import DataArguments, RFDETRTrainingArguments, parse_arguments
from ..training.console import log_to_console
from ..training.trainer import RFDETRTrainer

DESCRIPTION = """COCO metrics of a trained model on the {split} split of a data set.

  rfdetr-hf {verb} --model_name_or_path outputs/mine/best --dataset_name path/to/data
  rfdetr-hf {verb} ... --output metrics.json

examples/evaluate.py goes deeper: per-class tables, curves, the worst images, tiles and flips."""


@dataclass
class EvaluationArguments:
    """Which model, where to write."""

    model_name_or_path: str = field(metadata={"help": "A model folder or Hub id."})
    batch_size: int = field(default=8, metadata={"help": "Images of a batch."})
    num_workers: int = field(default=2, metadata={"help": "Processes that load images."})
    output: str | None = field(default=None, metadata={"help": "A JSON file for the metrics; must not exist yet."})


def main(argv: Sequence[str], verb: str = "validate", split: str = "validation") -> int:
    """Evaluate one split and print the metrics as JSON; returns the exit code."""
    description = DESCRIPTION.format(verb=verb, split=split)
    types = (EvaluationArguments, DataArguments)
    args, data_args = parse_arguments(types, argv, prog=f"rfdetr-hf {verb}", description=description)
    log_to_console()
    metrics = evaluate(args, data_args, split)
    text = json.dumps(metrics, indent=2)
    print(text)
    if args.output:
        Path(args.output).write_text(text + "\n", encoding="utf-8")
    return 0


def evaluate(args: EvaluationArguments, data_args: DataArguments, split: str) -> dict[str, float]:
    """The metrics of a split, by the trainer."""
    if args.output and Path(args.output).exists():
        raise FileExistsError(f"--output {args.output} exists; choose another name")
    model = load_model(args.model_name_or_path)
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    dataset = load_detection_dataset(**data_args.load_options(), class_names=names)
    if split not in dataset:
        raise ValueError(f"{data_args.dataset_name} has no split {split!r}; it has {', '.join(dataset)}")
    training_args = RFDETRTrainingArguments(
        per_device_eval_batch_size=args.batch_size, dataloader_num_workers=args.num_workers
    )
    processor = RFDETRImageProcessor.from_pretrained(args.model_name_or_path)
    trainer = RFDETRTrainer(model, training_args, eval_dataset=dataset[split], image_processor=processor)
    return trainer.evaluate(metric_key_prefix=split)
