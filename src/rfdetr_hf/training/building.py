"""From the arguments of a run to its data, model and trainer; for the examples and the command line."""

from typing import Any

from accelerate.utils import set_seed
from datasets import DatasetDict

from ..data.keypoints import KeypointSchema
from ..data.schema import class_names, has_keypoints, keypoint_schema, label_table
from ..data.sources import load_detection_dataset
from ..models.configuration_rfdetr import RFDETRConfig
from ..models.files.auto import is_official, load_model, model_class, source_task
from ..models.modeling_rfdetr import RFDETRPreTrainedModel
from .arguments import DataArguments, ModelArguments, RFDETRTrainingArguments
from .trainer import RFDETRTrainer


def load_data(args: DataArguments, model_task: str = "detection") -> DatasetDict:
    """The splits of the data set as a model for `model_task` needs them, with the table of its classes printed."""
    dataset = load_detection_dataset(**args.load_options(model_task))
    print(label_table(dataset["train"]))
    return dataset


def model_task(args: ModelArguments) -> str:
    """ "detection", "segmentation" or "keypoints": what the checkpoint or the variant is for.

    Raises:
        ValueError: there is no such variant.
    """
    if args.model_name_or_path is not None:
        options = {} if is_official(args.model_name_or_path) else {"revision": args.revision}
        return source_task(args.model_name_or_path, **options)
    variants = RFDETRConfig.variants()
    if args.variant not in variants:
        raise ValueError(f"unknown variant {args.variant!r}: choose one of {', '.join(variants)}.")
    return variants[args.variant].task


def build_model(
    args: ModelArguments, names: list[str], keypoints: KeypointSchema | None = None
) -> RFDETRPreTrainedModel:
    """A model for the given classes: published weights with a new class head, or a variant with random weights.

    Args:
        args: which model.
        names: class names in the order of the labels.
        keypoints: of the data, for a keypoint model.
    """
    given: Any = args.config_overrides
    overrides: dict[str, Any] = dict(given or {}) | {"id2label": dict(enumerate(names))}
    overrides |= {"label2id": {name: i for i, name in enumerate(names)}}
    if keypoints is not None:
        overrides["num_keypoints_per_class"] = keypoints.num_keypoints_per_class
        overrides["keypoint_schema"] = keypoints.to_dict()
    if args.resolution is not None:
        overrides["resolution"] = args.resolution
    if args.model_name_or_path is not None:
        return _pretrained(args, overrides)
    config = RFDETRConfig.from_variant(str(args.variant), **overrides)
    model = model_class(model_task(args))(config)
    if args.init_backbone_from is not None:
        model.init_backbone_from(args.init_backbone_from)
    return model


def _pretrained(args: ModelArguments, overrides: dict[str, Any]) -> RFDETRPreTrainedModel:
    source = str(args.model_name_or_path)
    options = {} if is_official(source) else {"revision": args.revision}
    model: Any = load_model(source, class_init=args.class_init, **options, **overrides)
    if model.task == "keypoints":
        # As the official trainer does: precisions learnt elsewhere would make the first losses very large.
        model.reset_keypoint_precision()
    return model


def build_trainer(
    model_args: ModelArguments, data_args: DataArguments, training_args: RFDETRTrainingArguments
) -> RFDETRTrainer:
    """The trainer of a run, with the training, validation and test split of its data."""
    dataset = load_data(data_args, model_task(model_args))
    train = dataset["train"]
    schema = keypoint_schema(train) if has_keypoints(train) else None
    set_seed(training_args.seed)  # new weights are part of what a rerun repeats
    model: Any = build_model(model_args, class_names(train), schema)
    return RFDETRTrainer(
        model,
        training_args,
        train_dataset=train,
        eval_dataset=dataset.get("validation"),
        test_dataset=dataset.get("test"),
    )
