"""`rfdetr-hf data audit DATA`: what is odd about a data set."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import AuditArguments, DataArguments, ModelArguments, UsageError, parse_arguments
from .data_preview import model_of

TYPES = (AuditArguments, ModelArguments, DataArguments)

DESCRIPTION = """Look at every picture and box of a data set: counts, files that are missing,
damaged or in no split, copies within and between splits, boxes that are too
small, outside or there twice, classes that are rare or in one split alone.

  rfdetr-hf data audit DATA
  rfdetr-hf data audit my/data --html audit.html --near_duplicates
  rfdetr-hf data audit my/data --model seg-nano --strict
  rfdetr-hf data audit my/data --model outputs/mine/best --html audit.html

--model gives the resolution and the number of queries to compare with. A
trained one, a folder or a Hub id, also looks for likely errors of the labels:
objects without a box, classes that were swapped, boxes in the wrong place.
Pictures that have not changed since the last audit are not read again."""


def main(argv: Sequence[str], prog: str = "rfdetr-hf data audit") -> int:
    """Print the findings; returns 1 with --strict where some are serious."""
    args, model_args, data_args = parse_arguments(TYPES, argv, prog, DESCRIPTION, {"dataset_name": "DATA"})
    args.require_new()
    data_args.require_source()
    from .. import audit_data, load_detection_dataset, load_detector, log_to_console, notes_of_reading, write_audit_page

    log_to_console()
    detect: Any = None
    names: list[str] = []
    if model_args.variant is None:
        detect = load_detector(str(model_args.model_name_or_path), args.device, revision=model_args.revision)
        config, task = detect.model.config.with_fields(**model_args.config_fields()), detect.model.task
        names = [config.id2label[label] for label in range(config.num_labels)]
    else:
        config, task = model_of(model_args)
    with notes_of_reading() as noted:
        loaded = load_detection_dataset(**data_args.load_options(data_args.task or task))
    splits = {str(name): split for name, split in loaded.items()}
    try:
        audit = audit_data(
            splits, num_queries=config.num_queries, resolution=config.resolution, decode=not args.headers,
            near=args.near_duplicates, sample=args.sample, detect=detect, detected_names=names,
            batch_size=args.batch_size, noted=noted,
        )  # fmt: skip
    except ImportError as error:  # of an extra; 1 is for findings
        raise UsageError(str(error)) from error
    print(audit)
    if args.json is not None:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(audit.to_dict(), indent=1) + "\n", encoding="utf-8")
    if args.html is not None:
        write_audit_page(audit, splits, args.html)
    return 1 if args.strict and audit.serious else 0
