"""`rfdetr-hf data convert SRC DST`: a data set of any layout as shards, or as a folder."""

from collections.abc import Sequence

from .. import DataArguments, DataConvertArguments, parse_arguments

DESCRIPTION = """Write a data set as shards that a training streams, or as a folder. Pictures
keep their bytes.

  rfdetr-hf data convert SRC DST
  rfdetr-hf data convert my/data shards --task segmentation
  rfdetr-hf data convert my/data tars --format webdataset
  rfdetr-hf data convert shards folder --format folder

SRC is all that `fit` reads. DST is read by `fit` and by datasets.load_dataset;
`hf upload` brings it to the Hub."""


def main(argv: Sequence[str], prog: str = "rfdetr-hf data convert") -> int:
    """Convert, and say what came out; returns the exit code."""
    places = {"dataset_name": "SRC", "dst": "DST"}
    data_args, args = parse_arguments((DataArguments, DataConvertArguments), argv, prog, DESCRIPTION, places)
    args.require_new()
    data_args.require_source()
    from .. import convert_dataset, load_detection_dataset, log_to_console

    log_to_console()
    splits = load_detection_dataset(**data_args.load_options(data_args.task or "detection"))
    shards = convert_dataset(splits, args.dst, args.format, args.shard_mb)
    rows = ", ".join(f"{name} {len(split)}" for name, split in splits.items())
    print(f"{args.dst}: {args.format}" + (f", {shards} shards" if shards else "") + f"; images: {rows}")
    return 0
