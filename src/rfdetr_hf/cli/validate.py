"""`rfdetr-hf validate` and `rfdetr-hf test`: COCO metrics of a trained model."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .. import DataArguments, EvaluationArguments, RFDETRTrainingArguments
from .trained import load_subject, parse_verb

DESCRIPTION = """COCO metrics of a trained model on the {split} split of a data set, by the
trainer: as during a training, and on several processes under accelerate
launch.

  rfdetr-hf {verb} MODEL DATA
  rfdetr-hf {verb} outputs/mine/best my/data --output metrics.json
  rfdetr-hf {verb} --config run.yaml   the best model of that run

`rfdetr-hf evaluate` goes deeper: per-class tables, curves, the worst images,
tiles and flips."""

TYPES = (EvaluationArguments, DataArguments)


def main(argv: Sequence[str], verb: str = "validate", split: str = "validation") -> int:
    """Evaluate one split and print the metrics as JSON; returns the exit code."""
    description = DESCRIPTION.format(verb=verb, split=split)
    args, data_args = parse_verb(TYPES, argv, f"rfdetr-hf {verb}", description)
    from .. import log_to_console

    log_to_console()
    metrics = evaluate(args, data_args, split)
    text = json.dumps(metrics, indent=2)
    print(text)
    if args.output:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        Path(args.output).write_text(text + "\n", encoding="utf-8")
    return 0


def evaluate(args: EvaluationArguments, data_args: DataArguments, split: str) -> dict[str, float]:
    """The metrics of a split, by the trainer."""
    from .. import RFDETRTrainer

    args.require_new()
    subject = load_subject(args.model_name_or_path, data_args, split)
    training_args = RFDETRTrainingArguments(
        per_device_eval_batch_size=args.batch_size,
        dataloader_num_workers=args.num_workers,
        mixed_precision="bf16" if args.bf16 else "no",
    )
    with _on(args.device):
        trainer = RFDETRTrainer(
            subject.model, training_args, eval_dataset=subject.dataset, image_processor=subject.processor
        )
        return trainer.evaluate(metric_key_prefix="test" if split == "test" else "eval")


@contextmanager
def _on(device: str | None) -> Iterator[None]:
    """Accelerate takes the device of a single process from its environment."""
    name = "ACCELERATE_TORCH_DEVICE"
    before = os.environ.get(name)
    if device is not None:
        os.environ[name] = device
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before
