"""Train RF-DETR on a data set in COCO or Roboflow layout, on a Hub data set, or on synthetic shapes.

Two minutes on a CPU, nothing to download:

    accelerate launch examples/train.py --config examples/configs/quickstart.yaml

Fine-tune a published checkpoint on your own data, on one GPU or several:

    accelerate launch examples/train.py --config examples/configs/finetune.yaml \
        --dataset_name path/to/dataset --output_dir outputs/mine

Every option of the YAML file can be given on the command line, where it wins. Continue an interrupted run with
`--resume`. `rfdetr-hf fit` is this script as a command.
"""

import sys

from rfdetr_hf import RFDETRTrainer, RFDETRTrainingArguments
from rfdetr_hf.data.schema import class_names
from rfdetr_hf.training.arguments import DataArguments, ModelArguments, parse_arguments
from rfdetr_hf.training.building import build_model, load_data
from rfdetr_hf.training.console import log_to_console


def main(argv: list[str]) -> None:
    """Parse, build, train, evaluate the test split."""
    log_to_console()
    types = (ModelArguments, DataArguments, RFDETRTrainingArguments)
    model_args, data_args, training_args = parse_arguments(types, argv, prog="train.py")

    dataset = load_data(data_args)
    model = build_model(model_args, class_names(dataset["train"]))
    trainer = RFDETRTrainer(
        model, training_args, train_dataset=dataset["train"], eval_dataset=dataset.get("validation")
    )
    trainer.train()
    if "test" in dataset:
        trainer.evaluate(dataset["test"], metric_key_prefix="test")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, FileNotFoundError, FileExistsError, ImportError) as error:
        sys.exit(f"error: {error}")
