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

from rfdetr_hf import RFDETRTrainingArguments
from rfdetr_hf.cli.fit import train
from rfdetr_hf.training.arguments import DataArguments, ModelArguments, parse_arguments
from rfdetr_hf.training.building import build_trainer
from rfdetr_hf.training.console import log_to_console


def main(argv: list[str]) -> None:
    """Parse, build, train; the trainer ends with the scores of the test split, where there is one."""
    log_to_console()
    types = (ModelArguments, DataArguments, RFDETRTrainingArguments)
    model_args, data_args, training_args = parse_arguments(types, argv, prog="train.py")

    train(build_trainer(model_args, data_args, training_args), argv, ["python", sys.argv[0]])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, FileNotFoundError, FileExistsError, ImportError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
