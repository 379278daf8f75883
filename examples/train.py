"""Train RF-DETR on a data set in COCO, Roboflow or YOLO layout, on a Hub data set, or on synthetic shapes.

Three minutes on two cores of a CPU, nothing to download:

    accelerate launch --config_file examples/accelerate/single.yaml examples/train.py \
        --config examples/configs/quickstart.yaml

Fine-tune a published checkpoint on your own data; on several GPUs with examples/accelerate/ddp.yaml:

    accelerate launch --config_file examples/accelerate/single.yaml examples/train.py path/to/dataset \
        --config examples/configs/finetune.yaml --output_dir outputs/mine

Every option of the YAML file can be given on the command line, where it wins. Continue an interrupted run with
`--resume`. `rfdetr-hf fit` is this script as a command.
"""

import sys

from accelerate.utils import set_seed

from rfdetr_hf import (
    DataArguments,
    ModelArguments,
    RFDETRConfig,
    RFDETRForKeypointDetection,
    RFDETRTrainer,
    RFDETRTrainingArguments,
    check_run_directory,
    end_with_launcher,
    is_official,
    load_detection_dataset,
    log_to_console,
    model_class,
    parse_arguments,
    resume_hint,
)


def main(argv: list[str]) -> None:
    """Load the data, build the model, train; at the end the trainer scores the test split, where there is one."""
    end_with_launcher()  # what comes before the training may take long
    types = (ModelArguments, DataArguments, RFDETRTrainingArguments)
    places = {"dataset_name": "DATA"}
    model_args, data_args, training_args = parse_arguments(types, argv, prog="train.py", positional=places)
    log_to_console()
    check_run_directory(training_args.output_dir, training_args.resume_from_checkpoint)

    # The data: what its objects must have besides boxes is what the model is for.
    data_args.require_source()
    task = model_args.task  # fetches a checkpoint of the Hub
    dataset = load_detection_dataset(**data_args.load_options(task))

    # The model: the classes of the data replace those of the checkpoint; their rows are kept where the names agree.
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

    # The training: checkpoints, best/ and last/ go to training_args.output_dir.
    trainer = RFDETRTrainer(
        model,
        training_args,
        train_dataset=dataset["train"],
        eval_dataset=dataset.get("validation"),
        test_dataset=dataset.get("test"),
        made_from=(model_args, data_args),
    )
    with resume_hint(training_args.output_dir, argv, ["python", sys.argv[0]]):
        trainer.train()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, FileNotFoundError, FileExistsError, ImportError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
