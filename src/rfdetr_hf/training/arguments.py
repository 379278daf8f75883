"""What a run is told: training arguments, and the arguments of the example scripts that choose model and data."""

import argparse
import contextlib
import dataclasses
import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..hub.push import STRATEGIES as HUB_STRATEGIES
from ..models.files.auto import is_official
from .drop_path import MODES as DROP_PATH_MODES
from .drop_path import SCHEDULES as DROP_PATH_SCHEDULES
from .optimization import SCHEDULES as LR_SCHEDULES
from .optimization import check_schedule_options

MULTI_SCALE_MODES = ("per_batch", "per_sample", "off")
PARAM_GROUPS = ("default", "official")
TASKS = ("detection", "segmentation", "keypoints")
AUDITS = ("full", "headers", "off")


def _option(default: Any, help: str, choices: Sequence[str] | None = None) -> Any:
    metadata = {"help": help} | ({"choices": list(choices)} if choices else {})
    return field(default=default, metadata=metadata)


@dataclass
class RFDETRTrainingArguments:
    """Everything that [`RFDETRTrainer`] is told. Names are those of `transformers.TrainingArguments` where it has one.

    The defaults are the published fine-tuning recipe: AdamW at 1e-4 (encoder 1.5e-4, decayed by layer), effective
    batch 16, constant rate, clipping at 0.1, EMA 0.993, multi-scale from half to one and a half times the resolution.

    Raises:
        ValueError: for a value out of its range or a combination that contradicts itself; the message names the fields.
    """

    output_dir: str = _option("outputs", "Directory of the run: checkpoints, best/, last/, metrics.csv, train.log.")

    num_train_epochs: float = _option(100.0, "Passes over the training split.")
    max_steps: int = _option(-1, "Optimizer steps; when positive it replaces num_train_epochs.")
    per_device_train_batch_size: int = _option(4, "Images of one micro-batch on one device.")
    per_device_eval_batch_size: int | None = _option(None, "Images of one evaluation batch; default: the training one.")
    gradient_accumulation_steps: int = _option(4, "Micro-batches of one optimizer step.")

    learning_rate: float = _option(1e-4, "Rate of projector, heads and queries.")
    learning_rate_encoder: float = _option(1.5e-4, "Rate of the encoder, before layer and component decay.")
    layer_decay: float = _option(0.8, "Factor on the encoder's rate for each layer away from its output.")
    component_decay: float = _option(0.7, "Factor on the decoder's rate; squared on the encoder's.")
    weight_decay: float = _option(1e-4, "AdamW's weight decay.")
    param_groups: str = _option(
        "default",
        "'default' decays no bias, norm, LayerScale or embedding; 'official' is the table of the rfdetr package.",
        PARAM_GROUPS,
    )
    adam_beta1: float = _option(0.9, "AdamW's first beta.")
    adam_beta2: float = _option(0.999, "AdamW's second beta.")
    adam_epsilon: float = _option(1e-8, "AdamW's epsilon.")
    max_grad_norm: float = _option(0.1, "Gradients are clipped to this global L2 norm; 0 turns clipping off.")
    freeze_backbone: bool = _option(False, "Train projector, decoder and heads only.")
    freeze_encoder_blocks: int = _option(0, "First encoder blocks that are not trained; nor the embeddings.")
    lora_r: int = _option(0, "Rank of adapters that are trained instead of the encoder (extra 'lora'); 0 for none.")
    lora_alpha: float = _option(16.0, "The adapters' output is multiplied by lora_alpha / lora_r.")
    lora_dropout: float = _option(0.0, "Dropout in front of the adapters.")
    lora_target_modules: str = _option("query,key,value", "Adapted layers: query, key, value, dense, fc1, fc2.")
    use_dora: bool = _option(False, "DoRA: the adapted weights have rows of a learned length.")

    lr_scheduler_type: str = _option("constant", "constant, step, cosine or one of transformers.", LR_SCHEDULES)
    lr_scheduler_kwargs: dict | str | None = _option(None, "Further arguments of a transformers scheduler (JSON).")
    warmup_steps: float = _option(0, "Linear warm-up in optimizer steps; a share of all steps when below 1.")
    warmup_epochs: float = _option(0.0, "Linear warm-up in epochs; excludes warmup_steps.")
    min_lr_ratio: float = _option(0.0, "Floor of the cosine schedule, as a share of the full rate.")
    lr_drop_epochs: float = _option(100.0, "Epoch at which the step schedule divides the rate by ten.")

    use_ema: bool = _option(True, "Keep an exponential moving average of the weights, evaluate it and save it.")
    ema_decay: float = _option(0.993, "Decay that the average reaches.")
    ema_tau: float = _option(100.0, "Warm-up of the decay in updates: decay * (1 - exp(-updates / tau)); 0 for none.")
    ema_update_interval: int = _option(1, "Optimizer steps from one update of the average to the next.")

    drop_path: float = _option(0.0, "Peak stochastic-depth rate of the encoder's last block.")
    drop_path_mode: str = _option("standard", "Whole run, before or after drop_path_cutoff_epochs.", DROP_PATH_MODES)
    drop_path_schedule: str = _option("constant", "Constant, or a linear ramp over its phase.", DROP_PATH_SCHEDULES)
    drop_path_cutoff_epochs: float = _option(0.0, "Boundary of the early and late modes.")

    multi_scale: str = _option("per_batch", "A scale per optimizer step, per sample, or none.", MULTI_SCALE_MODES)
    expanded_scales: bool = _option(True, "Scales from -5 to +5 blocks around the resolution instead of -3 to +4.")
    square_resize: bool = _option(True, "Resize to a square; False keeps the aspect ratio and pads, afterwards too.")
    scale_jitter: bool = _option(True, "Half of the training images pass through a random resized crop.")
    horizontal_flip: float = _option(0.5, "Probability of a horizontal flip.")

    dataloader_num_workers: int = _option(2, "Worker processes of each loader.")
    dataloader_pin_memory: bool = _option(True, "Pin batches when the device is a GPU.")
    dataloader_persistent_workers: bool = _option(True, "Keep the workers from epoch to epoch.")
    dataloader_prefetch_factor: int | None = _option(None, "Batches that each worker loads ahead.")
    dataloader_timeout: float = _option(
        600, "Seconds after which a batch that the workers do not give ends the run; 0 for never."
    )
    audit: str = _option("full", "Decode every image before the first step, read headers only, or neither.", AUDITS)

    bf16: bool = _option(False, "bfloat16 autocast.")
    fp16: bool = _option(False, "float16 autocast with a gradient scaler (GPU only).")
    tf32: bool = _option(True, "Allow TF32 matrix products in float32 parts on GPUs that have them.")
    torch_compile: bool = _option(False, "Compile the encoder's and the decoder's blocks.")
    torch_compile_backend: str = _option("inductor", "What compiles them.")
    gradient_checkpointing: bool = _option(False, "Recompute encoder blocks in the backward pass to save memory.")
    max_skipped_steps: int = _option(20, "Non-finite steps in a row after which the run ends with an error.")
    seed: int = _option(42, "Seed of data order, augmentation, scales and drop path.")
    ddp_timeout: int = _option(1800, "Seconds that a process waits for the others before it gives up.")
    full_determinism: bool = _option(
        False, "Deterministic kernels (slower) where PyTorch has them; it warns of each that has none."
    )

    eval_strategy: str = _option("epoch", "When to evaluate.", [s.value for s in IntervalStrategy])
    eval_steps: float | None = _option(None, "Steps between evaluations (a share of all steps when below 1).")
    eval_delay: float = _option(0, "Epochs or steps before the first evaluation.")
    eval_on_start: bool = _option(False, "Evaluate before the first step.")
    eval_raw_weights: bool = _option(False, "With EMA: evaluate the raw weights beside the average.")
    eval_max_dets: int = _option(
        100, "Another limit of detections per image and class, scored beside COCO's 100: map_at_300, ..."
    )
    eval_loss: bool = _option(False, "Also compute the loss of the evaluation split, term by term: eval_loss, ...")
    eval_predictions: bool = _option(
        False, "Write what each evaluation finds as COCO results, eval/<step>/<weights>/predictions.json."
    )
    eval_per_class: bool = _option(False, "Log the scores of each class, and print their table.")

    save_strategy: str = _option("epoch", "When to write a checkpoint.", [s.value for s in SaveStrategy])
    save_steps: float = _option(500, "Steps between checkpoints (a share of all steps when below 1).")
    save_total_limit: int | None = _option(2, "Checkpoints to keep; None keeps all. best/ and last/ do not count.")
    async_save: bool = _option(
        False, "Write checkpoints in the background, from a copy in host memory; not under FSDP2 or DeepSpeed."
    )
    load_best_model_at_end: bool = _option(True, "After training the model in memory is the best one.")
    metric_for_best_model: str | None = _option(
        None,
        "map, map_50, mar_100, ...: the best of raw and averaged weights; ema_map etc.: of the average alone. Default: "
        "the mAP of the model's task (map, segm_map, keypoint_map) of what is evaluated.",
    )
    greater_is_better: bool = _option(True, "Whether a larger metric is a better one.")
    skip_best_epochs: float = _option(0.0, "Evaluations before this epoch choose no best model and stop nothing.")
    smooth_alpha: float = _option(0.0, "Exponential smoothing of the metric that chooses the best model, in [0, 1).")
    early_stopping_patience: int | None = _option(None, "Evaluations without improvement after which the run stops.")
    early_stopping_threshold: float = _option(0.001, "Least improvement that counts for early stopping.")

    logging_strategy: str = _option("steps", "When to log.", [s.value for s in IntervalStrategy])
    logging_steps: float = _option(50, "Steps between log lines (a share of all steps when below 1).")
    logging_first_step: bool = _option(True, "Log the first step.")
    disable_tqdm: bool = _option(False, "No progress bar.")
    report_to: str = _option(
        "none", "Trackers, separated by commas: tensorboard, wandb, mlflow, trackio, ...; or none."
    )
    tracker_kwargs: dict | str | None = _option(
        None, 'Further arguments of trackers by name (JSON), such as {"wandb": {"entity": "us", "tags": ["a"]}}.'
    )
    project: str = _option("rfdetr_hf", "Project (MLflow: experiment) of the trackers.")
    run_name: str | None = _option(None, "Name of the run in the trackers; default: that of output_dir.")
    report_images: int = _option(8, "Images with predictions that trackers get at each evaluation.")

    push_to_hub: bool = _option(False, "Upload the run to the Hub, in the background.")
    hub_model_id: str | None = _option(None, "user/name of the repository; default: the name of output_dir.")
    hub_strategy: str = _option(
        "every_save",
        "Upload the model at the end, also at every save, also the last checkpoint, or also all checkpoints.",
        HUB_STRATEGIES,
    )
    hub_private_repo: bool | None = _option(
        None, "Whether a new repository is private; default: the account's setting."
    )
    hub_token: str | None = _option(None, "Token of the Hub; default: the login of this machine. Never saved.")

    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Go on from a checkpoint: a folder, user/repo on the Hub, or 'true' (the same as no value) for "
            "the newest of output_dir that is whole; 'auto': likewise, or start anew where there is none.",
            "aliases": ["--resume"],
            "nargs": "?",
            "const": "true",
        },
    )

    def __post_init__(self) -> None:
        for name in ("lr_scheduler_kwargs", "tracker_kwargs"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, _parse_json(name, getattr(self, name)))
        self.eval_strategy = IntervalStrategy(self.eval_strategy)
        self.save_strategy = SaveStrategy(self.save_strategy)
        self.logging_strategy = IntervalStrategy(self.logging_strategy)
        if not isinstance(self.report_to, str):
            self.report_to = ",".join(self.report_to or ()) or "none"
        for name in ("eval_steps", "save_steps", "logging_steps", "warmup_steps"):
            setattr(self, name, _whole_or_share(name, getattr(self, name)))
        self._check_ranges()
        self._check_choices()
        self._check_combinations()

    def _check_ranges(self) -> None:
        def check(name: str, ok: bool, rule: str) -> None:
            if not ok:
                raise ValueError(f"{name}={getattr(self, name)!r} is not valid: it must be {rule}")

        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "ema_update_interval",
                     "eval_max_dets"):  # fmt: skip
            check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("learning_rate", "learning_rate_encoder", "logging_steps", "save_steps", "adam_epsilon",
                     "ddp_timeout", "lora_alpha"):  # fmt: skip
            check(name, getattr(self, name) > 0, "positive")
        for name in ("weight_decay", "max_grad_norm", "warmup_steps", "warmup_epochs", "ema_tau", "eval_delay",
                     "drop_path_cutoff_epochs", "dataloader_num_workers", "dataloader_timeout", "skip_best_epochs",
                     "lr_drop_epochs",
                     "early_stopping_threshold", "max_skipped_steps", "freeze_encoder_blocks",
                     "lora_r", "report_images"):  # fmt: skip
            check(name, getattr(self, name) >= 0, "zero or more")
        for name in ("ema_decay", "drop_path", "smooth_alpha", "adam_beta1", "adam_beta2", "lora_dropout"):
            check(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        for name in ("layer_decay", "component_decay"):
            check(name, 0 < getattr(self, name) <= 1, "in (0, 1]")
        for name in ("min_lr_ratio", "horizontal_flip"):
            check(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        for name in ("per_device_eval_batch_size", "save_total_limit", "early_stopping_patience", "eval_steps",
                     "dataloader_prefetch_factor"):  # fmt: skip
            check(name, getattr(self, name) is None or getattr(self, name) > 0, "positive, or None")
        check("num_train_epochs", self.num_train_epochs > 0 or self.max_steps > 0, "positive")

    def _check_choices(self) -> None:
        choices = {f.name: f.metadata["choices"] for f in dataclasses.fields(self) if "choices" in f.metadata}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not known; choose one of {', '.join(allowed)}")

    def _check_combinations(self) -> None:
        if self.bf16 and self.fp16:
            raise ValueError("bf16 and fp16 exclude each other; set one of them")
        if self.freeze_backbone and self.lora_r:
            raise ValueError("freeze_backbone and lora_r exclude each other; adapters freeze the encoder by themselves")
        if self.warmup_steps and self.warmup_epochs:
            raise ValueError("warmup_steps and warmup_epochs exclude each other; set one of them")
        if self.eval_strategy == IntervalStrategy.STEPS and self.eval_steps is None:
            self.eval_steps = self.logging_steps
        if self.eval_strategy == IntervalStrategy.NO:
            if self.early_stopping_patience is not None:
                raise ValueError("early_stopping_patience needs evaluations; set eval_strategy to 'epoch' or 'steps'")
        if (self.metric_for_best_model or "").removeprefix("eval_").startswith("ema_") and not self.use_ema:
            raise ValueError(f"metric_for_best_model={self.metric_for_best_model!r} needs use_ema=True")
        if self.save_strategy == SaveStrategy.BEST and self.eval_strategy == IntervalStrategy.NO:
            raise ValueError("save_strategy='best' needs evaluations; set eval_strategy to 'epoch' or 'steps'")
        self._check_schedules()
        for name in set(self.tracker_kwargs or {}) - set(self.trackers):
            raise ValueError(f"tracker_kwargs names {name!r}, which is not in report_to={self.report_to!r}")
        if self.push_to_hub and "checkpoint" in self.hub_strategy and self.save_strategy == SaveStrategy.NO:
            raise ValueError(f"hub_strategy={self.hub_strategy!r} needs checkpoints; set save_strategy to 'epoch'")

    def _check_schedules(self) -> None:
        check_schedule_options(self.lr_scheduler_type, self)
        drops = {f.name: f.default for f in dataclasses.fields(self)}["lr_drop_epochs"]
        if self.lr_scheduler_type != "step" and self.lr_drop_epochs != drops:
            raise ValueError(
                f"lr_drop_epochs={self.lr_drop_epochs} has no effect with "
                f"lr_scheduler_type={self.lr_scheduler_type!r}; set that to 'step', or leave it out"
            )
        if self.drop_path_mode == "standard":
            for name, idle in (("drop_path_schedule", "constant"), ("drop_path_cutoff_epochs", 0)):
                if getattr(self, name) != idle:
                    raise ValueError(
                        f"{name}={getattr(self, name)!r} has no effect with drop_path_mode='standard'; set that to "
                        "'early' or 'late', or leave it out"
                    )

    @property
    def eval_batch_size(self) -> int:
        """Images of one evaluation batch on one device."""
        return self.per_device_eval_batch_size or self.per_device_train_batch_size

    @property
    def evaluated_prefixes(self) -> tuple[str, ...]:
        """Metric prefixes of what is evaluated: "" for the raw weights, "ema_" for the average."""
        if not self.use_ema:
            return ("",)
        return ("", "ema_") if self.eval_raw_weights else ("ema_",)

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names in `report_to`."""
        names = tuple(name.strip() for name in self.report_to.split(","))
        return tuple(name for name in names if name not in ("", "none"))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for JSON or YAML; without the token."""
        values = dataclasses.asdict(self) | {"hub_token": None}
        return {k: v.value if isinstance(v, (IntervalStrategy, SaveStrategy)) else v for k, v in values.items()}

    def to_sanitized_dict(self) -> dict[str, Any]:
        """The fields as values that every tracker takes (numbers, strings, booleans)."""
        return {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in self.to_dict().items()}

    def to_json_string(self) -> str:
        """The fields as indented JSON."""
        return json.dumps(self.to_dict(), indent=2)


@dataclass
class ModelArguments:
    """Which model the example scripts and the command line build.

    Raises:
        ValueError: for an option that has no effect beside the others.
    """

    model_name_or_path: str | None = _option(None, "A folder or Hub id to start from; default: random weights.")
    variant: str | None = _option(None, "Size to build when model_name_or_path is not given; default: nano.")
    config_overrides: dict | str | None = _option(None, "Configuration fields to change (JSON or a YAML mapping).")
    resolution: int | None = _option(None, "Side of the square input in pixels; default: the variant's.")
    revision: str | None = _option(None, "Branch, tag or commit of model_name_or_path on the Hub.")
    class_init: str = _option("prior", "New class rows: fresh, or repeated as rfdetr does.", ("prior", "tile"))
    init_backbone_from: str | None = _option(None, "DINOv2 of transformers to start a variant's encoder from.")

    def __post_init__(self) -> None:
        if isinstance(self.config_overrides, str):
            self.config_overrides = _parse_json("config_overrides", self.config_overrides)
        if self.model_name_or_path is None:
            self._refuse("without model_name_or_path", revision=None, class_init="prior")
            self.variant = self.variant or "nano"
            return
        self._refuse("with model_name_or_path", variant=None, init_backbone_from=None)
        if is_official(self.model_name_or_path):
            self._refuse(f"on the file {self.model_name_or_path}", revision=None)

    def _refuse(self, where: str, **unset: str | None) -> None:
        for name, value in unset.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect {where}; leave one of them out")


@dataclass
class DataArguments:
    """Which data the example scripts and the command line load."""

    dataset_name: str = _option("synthetic-shapes", "A folder, a Hub id or 'synthetic-shapes'.")
    dataset_config_name: str | None = _option(None, "Configuration of a Hub data set.")
    dataset_revision: str | None = _option(None, "Branch, tag or commit of a Hub data set.")
    image_dir: str | None = _option(None, "Image folder of a COCO layout where it is not found by itself.")
    train_split: str | None = _option(None, "Name of the training split where it is not 'train' or the like.")
    validation_split: str | None = _option(None, "Name of the validation split, or a share of 'train' to hold out.")
    test_split: str | None = _option(None, "Name of the test split where it is not 'test' or the like.")
    task: str | None = _option(None, "What the objects need besides boxes; default: what the model needs.", TASKS)
    label_dir: str | None = _option(None, "Label folder of a YOLO layout where it is not 'labels'.")
    missing_masks: str = _option("error", "Objects without a mask: an error, or their box.", ("error", "box"))
    keypoint_schema: dict | str | None = _option(
        None, "Names, skeleton, flip_pairs and sigmas of the keypoints of each class (JSON, a YAML mapping or a file)."
    )

    def __post_init__(self) -> None:
        if isinstance(self.keypoint_schema, str):
            self.keypoint_schema = _mapping_or_file("keypoint_schema", self.keypoint_schema)
        if self.keypoint_schema is not None and self.task not in (None, "keypoints"):
            raise ValueError(f"keypoint_schema is for task=keypoints, and task is {self.task}")

    def load_options(self, model_task: str = "detection") -> dict[str, Any]:
        """The fields as arguments of [`load_detection_dataset`].

        Args:
            model_task: "detection", "segmentation" or "keypoints": what the model that gets the data is for.

        Raises:
            ValueError: `task` is given and another, or `keypoint_schema` is given to another task.
        """
        if self.task not in (None, model_task):
            raise ValueError(f"task={self.task!r} contradicts the model, which is for {model_task}; leave task out")
        if self.keypoint_schema is not None and model_task != "keypoints":
            raise ValueError(f"keypoint_schema is for keypoint models, and this one is for {model_task}; leave it out")
        share = self.validation_split
        with contextlib.suppress(TypeError, ValueError):
            share = float(share)
        return {
            "name_or_path": self.dataset_name,
            "name": self.dataset_config_name,
            "revision": self.dataset_revision,
            "image_dir": self.image_dir,
            "train_split": self.train_split,
            "validation_split": share,
            "test_split": self.test_split,
            "task": model_task,
            "label_dir": self.label_dir,
            "missing_masks": self.missing_masks,
            "keypoint_schema": self.keypoint_schema,
        }


def _whole_or_share(name: str, value: float | None) -> float | int | None:
    if value is None or value < 1:
        return value
    if value != int(value):
        raise ValueError(f"{name}={value!r} is not valid: from 1 on it counts steps and must be a whole number")
    return int(value)


def _parse_json(name: str, text: str) -> dict:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a JSON object, got {text!r}")
    return value


def _mapping_or_file(name: str, text: str) -> dict[str, Any]:
    """A mapping written as JSON or YAML, or the file that holds it."""
    written = text.lstrip().startswith("{")
    if not written and not Path(text).is_file():
        raise ValueError(f"{name}={text!r} is neither a mapping ({{...}}) nor a file")
    try:
        value = yaml.safe_load(text if written else Path(text).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}: {text} is neither valid JSON nor YAML: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name}: {text} must hold a mapping, and holds {type(value).__name__}")
    return value


class UsageError(ValueError):
    """What was asked for cannot be understood: a misspelt option, a value out of its range, a broken YAML file."""


def parse_arguments(
    dataclass_types: Sequence[type], argv: Sequence[str], prog: str | None = None, description: str | None = None
) -> tuple[Any, ...]:
    """Parse `--config file.yaml` and command-line options into one instance of each dataclass.

    Options given on the command line win over the file.

    Args:
        dataclass_types: whose fields are the options.
        argv: words of the command line.
        prog: name of the command in its help.
        description: first paragraphs of its help.

    Raises:
        UsageError: for an option or a key of the file that no dataclass has, with the nearest name that exists, and
            for a value that a dataclass refuses.
    """
    try:
        return _parse_arguments(dataclass_types, argv, prog, description)
    except ValueError as error:
        raise UsageError(str(error)) from error


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside the options, and the description as it is written."""


def _parse_arguments(
    dataclass_types: Sequence[type], argv: Sequence[str], prog: str | None, description: str | None
) -> tuple[Any, ...]:
    parser = HfArgumentParser(
        dataclass_types, prog=prog, description=description, allow_abbrev=False, formatter_class=_Help
    )
    parser.add_argument("--config", help="YAML file of options.")
    config_path = parser.parse_known_args(list(argv))[0].config
    fields = {f.name: f for cls in dataclass_types for f in dataclasses.fields(cls)}
    known = list(fields)
    from_file = _read_yaml(config_path, known) if config_path else {}
    parser.set_defaults(**{key: None for key, value in from_file.items() if value is None})
    words = [word for key, value in from_file.items() if value is not None for word in to_words(fields[key], value)]
    *parsed, _, unknown = parser.parse_args_into_dataclasses(
        [*words, *argv], return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        if not unknown[0].startswith("-"):
            raise ValueError(f"{unknown[0]!r} on the command line belongs to no option; join several values by commas")
        raise ValueError(_unknown_option(unknown[0].lstrip("-").split("=")[0], known, "on the command line"))
    return tuple(parsed)


def _read_yaml(path: str, known: Sequence[str]) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping of option names to values")
    for key in values:
        if key not in known:
            raise ValueError(_unknown_option(str(key), known, f"in {path}"))
    return values


def to_words(option: dataclasses.Field, value: Any) -> list[str]:
    """An entry of a YAML file as words of the command line."""
    if value is False:  # how YAML reads a bare no or off
        value = next((word for word in ("no", "off") if word in option.metadata.get("choices", ())), value)
    if isinstance(value, dict):
        return [f"--{option.name}", json.dumps(value)]
    if isinstance(value, list):
        is_text = option.type in (str, str | None)
        return [f"--{option.name}", *([",".join(map(str, value))] if is_text else map(str, value))]
    return [f"--{option.name}", str(value)]


def _unknown_option(name: str, known: Sequence[str], where: str) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"unknown option {name!r} {where}" + (f"; did you mean {near[0]!r}?" if near else "")
