"""`rfdetr-hf fit`: train."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import (
    DataArguments,
    LaunchArguments,
    ModelArguments,
    RFDETRTrainingArguments,
    UsageError,
    is_official,
    parse_arguments,
)

if TYPE_CHECKING:
    from .. import RFDETRTrainer

TYPES = (ModelArguments, DataArguments, RFDETRTrainingArguments, LaunchArguments)

DESCRIPTION = """Train an RF-DETR detector.

  rfdetr-hf fit DATA --model nano --epochs 50 --output_dir outputs/mine
  rfdetr-hf fit --config run.yaml                the options of a file
  rfdetr-hf fit --config run.yaml --resume       go on from the last checkpoint

DATA is a folder in the layout of Roboflow, COCO, YOLO or Pascal VOC, or a Hub
data set; random weights instead of published ones: --from_scratch. The best
model goes to <output_dir>/best, which `rfdetr-hf predict` and plain
transformers read."""


def main(argv: Sequence[str], prog: str = "rfdetr-hf fit") -> int:
    """Train, and evaluate the test split if there is one. Returns the exit code."""
    places = {"dataset_name": "DATA"}
    model_args, data_args, training_args, launch_args = parse_arguments(TYPES, argv, prog, DESCRIPTION, places)
    resume = str(training_args.resume_from_checkpoint or "true")
    no_data = data_args.dataset_name == DataArguments.dataset_name not in argv
    if no_data and resume.lower() not in ("true", "false", "auto") and "checkpoint" not in Path(resume).name:
        raise UsageError(
            f"--resume takes {resume!r} for its checkpoint, and DATA is missing; write DATA before it: "
            f"{prog} DATA --resume"
        )
    from .. import check_run_directory, log_to_console, resume_hint, run_processes

    # What is wrong on this machine is said once, before processes start and before the Hub is asked.
    check_run_directory(training_args.output_dir, training_args.resume_from_checkpoint)
    data_args.require_source()
    code = run_processes(launch_args, ["-m", "rfdetr_hf.cli", *prog.split()[1:], *argv])
    if code is not None:
        return code
    log_to_console()
    trainer = build_trainer(model_args, data_args, training_args)
    with resume_hint(training_args.output_dir, argv, prog.split()):
        trainer.train()
    return 0


def build_trainer(
    model_args: ModelArguments, data_args: DataArguments, training_args: RFDETRTrainingArguments
) -> "RFDETRTrainer":
    """The trainer of a run, with the splits of its data; statement by statement as in examples/train.py."""
    from accelerate.utils import set_seed

    from .. import (
        RFDETRConfig,
        RFDETRForKeypointDetection,
        RFDETRTrainer,
        load_detection_dataset,
        model_class,
    )

    data_args.require_source()
    task = model_args.task  # fetches a checkpoint of the Hub
    dataset = load_detection_dataset(**data_args.load_options(task))

    set_seed(training_args.seed)  # new weights are part of what a rerun repeats
    fields = model_args.config_fields(dataset["train"])
    source = str(model_args.model_name_or_path)
    if model_args.from_scratch:
        model = model_class(task)(RFDETRConfig.from_variant(source, **fields))
        if model_args.init_backbone_from is not None:
            model.init_backbone_from(model_args.init_backbone_from)
    elif is_official(source):
        model = model_class(task).from_official(source, **model_args.class_options, **fields)
    else:
        fields |= {"revision": model_args.revision, **model_args.class_options}
        model = model_class(task).from_pretrained(source, **fields)
    if not model_args.from_scratch and isinstance(model, RFDETRForKeypointDetection):
        model.reset_keypoint_precision()  # learnt elsewhere, they would make the first losses very large

    trainer = RFDETRTrainer(
        model,
        training_args,
        train_dataset=dataset["train"],
        eval_dataset=dataset.get("validation"),
        test_dataset=dataset.get("test"),
        made_from=(model_args, data_args),
    )
    return trainer
