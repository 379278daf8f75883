"""What decides a run: training arguments, and the arguments that choose model and data."""

import contextlib
import copy
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from datasets import Dataset
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..data.conventions import BOX_FORMATS
from ..data.schema import class_names, has_keypoints, keypoint_schema
from ..hub.push import STRATEGIES as HUB_STRATEGIES
from ..models.configuration_rfdetr import RFDETRConfig
from ..models.files.adapt import CLASS_INITS
from ..models.files.auto import is_official, source_task
from ..options import (
    BELOW_1,
    FACTOR,
    FROM_0,
    FROM_1,
    POSITIVE,
    PROBABILITY,
    Range,
    option,
    settle_options,
    without_secrets,
)
from ..tasks import TASKS
from .best import larger_wins
from .drop_path import MODES as DROP_PATH_MODES
from .drop_path import SCHEDULES as DROP_PATH_SCHEDULES
from .optimization import SCHEDULES as LR_SCHEDULES
from .optimization import check_schedule_options, encoder_rate
from .parent import end_with_launcher
from .runtime import RuntimeFacts

MULTI_SCALE_MODES = ("per_batch", "per_sample", "off")
PARAM_GROUPS = ("default", "official")
AUDITS = ("full", "headers", "off")


@dataclass
class RFDETRTrainingArguments(RuntimeFacts):
    """All options of a training. Names are those of `transformers.TrainingArguments` where it has one.

    The defaults are the published fine-tuning recipe: AdamW at 1e-4 (encoder 1.5e-4, decayed by layer), effective
    batch 16, constant rate, clipping at 0.1, EMA 0.993, multi-scale from half to one and a half times the resolution.

    Raises:
        ValueError: for a value out of its range or a combination that contradicts itself; the message names the fields.
    """

    output_dir: str = option("outputs", "Directory of the run: checkpoints, best/, last/, metrics.csv, train.log.")

    num_train_epochs: float = option(100.0, "Passes over the training split.", FROM_0)
    max_steps: int = option(-1, "Optimizer steps; when positive it replaces num_train_epochs.")
    per_device_train_batch_size: int = option(4, "Images of one micro-batch on one device.", FROM_1)
    per_device_eval_batch_size: int | None = option(
        None, "Images of one evaluation batch; default: the training one.", FROM_1
    )
    gradient_accumulation_steps: int = option(4, "Micro-batches of one optimizer step.", FROM_1)

    learning_rate: float = option(1e-4, "Rate of projector, heads and queries.", Range(0, 10, "(]"))
    learning_rate_encoder: float | None = option(
        None,
        "Rate of the encoder, before layer and component decay; default: 1.5 times learning_rate.",
        Range(0, 10, "(]"),
    )
    layer_decay: float = option(0.8, "Factor on the encoder's rate for each layer away from its output.", FACTOR)
    component_decay: float = option(0.7, "Factor on the decoder's rate; squared on the encoder's.", FACTOR)
    weight_decay: float = option(1e-4, "AdamW's weight decay.", Range(0, 10))
    param_groups: str = option(
        "default",
        "'default' decays no bias, norm, LayerScale or embedding; 'official' is the table of the rfdetr package.",
        PARAM_GROUPS,
    )
    adam_beta1: float = option(0.9, "AdamW's first beta.", BELOW_1)
    adam_beta2: float = option(0.999, "AdamW's second beta.", BELOW_1)
    adam_epsilon: float = option(1e-8, "AdamW's epsilon.", Range(1e-37))
    max_grad_norm: float = option(0.1, "Gradients are clipped to this global L2 norm; 0 turns clipping off.", FROM_0)
    freeze_backbone: bool = option(False, "Train projector, decoder and heads only.")
    freeze_encoder_blocks: int = option(0, "First encoder blocks that are not trained; nor the embeddings.", FROM_0)
    lora_r: int = option(
        0, "Rank of adapters that are trained instead of the encoder (extra 'lora'); 0 for none.", FROM_0
    )
    lora_alpha: float = option(16.0, "The adapters' output is multiplied by lora_alpha / lora_r.", POSITIVE)
    lora_dropout: float = option(0.0, "Dropout in front of the adapters.", BELOW_1)
    lora_target_modules: str = option("query,key,value", "Adapted layers: query, key, value, dense, fc1, fc2.")
    use_dora: bool = option(False, "DoRA: the adapted weights have rows of a learned length.")

    lr_scheduler_type: str = option("constant", "constant, step, cosine or one of transformers.", LR_SCHEDULES)
    lr_scheduler_kwargs: dict | str | None = option(None, "Further arguments of a transformers scheduler (JSON).")
    warmup_steps: float = option(0, "Linear warm-up in optimizer steps; a share of all steps when below 1.", FROM_0)
    warmup_epochs: float = option(0.0, "Linear warm-up in epochs; excludes warmup_steps.", FROM_0)
    min_lr_ratio: float = option(0.0, "Floor of the cosine schedule, as a share of the full rate.", PROBABILITY)
    lr_drop_epochs: float = option(100.0, "Epoch at which the step schedule divides the rate by ten.", FROM_0)

    use_ema: bool = option(True, "Keep an exponential moving average of the weights, evaluate it and save it.")
    ema_decay: float = option(0.993, "Decay that the average reaches.", BELOW_1)
    ema_tau: float = option(
        100.0, "Warm-up of the decay in updates: decay * (1 - exp(-updates / tau)); 0 for none.", FROM_0
    )
    ema_update_interval: int = option(1, "Optimizer steps from one update of the average to the next.", FROM_1)

    drop_path: float = option(0.0, "Peak stochastic-depth rate of the encoder's last block.", BELOW_1)
    drop_path_mode: str = option("standard", "Whole run, before or after drop_path_cutoff_epochs.", DROP_PATH_MODES)
    drop_path_schedule: str = option("constant", "Constant, or a linear ramp over its phase.", DROP_PATH_SCHEDULES)
    drop_path_cutoff_epochs: float = option(0.0, "Boundary of the early and late modes.", FROM_0)

    multi_scale: str = option("per_batch", "A scale per optimizer step, per sample, or none.", MULTI_SCALE_MODES)
    expanded_scales: bool = option(True, "Scales from -5 to +5 blocks around the resolution instead of -3 to +4.")
    square_resize: bool = option(True, "Resize to a square; False keeps the aspect ratio and pads, afterwards too.")
    scale_jitter: bool = option(True, "Half of the training images pass through a random resized crop.")
    horizontal_flip: float = option(0.5, "Probability of a horizontal flip.", PROBABILITY)

    dataloader_num_workers: int = option(2, "Worker processes of each loader.", FROM_0)
    dataloader_pin_memory: bool = option(True, "Pin batches when the device is a GPU.")
    dataloader_persistent_workers: bool = option(True, "Keep the workers from epoch to epoch.")
    dataloader_prefetch_factor: int | None = option(None, "Batches that each worker loads ahead.", FROM_1)
    dataloader_timeout: float = option(
        600, "Seconds after which a batch that the workers do not give ends the run; 0 for never.", FROM_0
    )
    audit: str = option("full", "Decode every image before the first step, read headers only, or neither.", AUDITS)

    bf16: bool = option(False, "bfloat16 autocast.")
    fp16: bool = option(False, "float16 autocast with a gradient scaler (GPU only).")
    tf32: bool = option(True, "Allow TF32 matrix products in float32 parts on GPUs that have them.")
    torch_compile: bool = option(False, "Compile the encoder's and the decoder's blocks.")
    torch_compile_backend: str = option("inductor", "What compiles them.")
    gradient_checkpointing: bool = option(False, "Recompute encoder blocks in the backward pass to save memory.")
    max_skipped_steps: int = option(20, "Non-finite steps in a row that end the run with an error.", FROM_0)
    seed: int = option(42, "Seed of data order, augmentation, scales and drop path.", Range(0, 2**32 - 1))
    ddp_timeout: int = option(1800, "Seconds that a process waits for the others before it gives up.", POSITIVE)
    full_determinism: bool = option(
        False, "Deterministic kernels (slower) where PyTorch has them; it warns of each that has none."
    )

    eval_strategy: str = option("epoch", "When to evaluate.", [s.value for s in IntervalStrategy])
    eval_steps: float | None = option(None, "Steps between evaluations (below 1: a share of all steps).", POSITIVE)
    eval_delay: float = option(0, "Epochs or steps before the first evaluation.", FROM_0)
    eval_on_start: bool = option(False, "Evaluate before the first step.")
    eval_raw_weights: bool = option(False, "With EMA: evaluate the raw weights beside the average.")
    eval_max_dets: int = option(
        100, "Another limit of detections per image and class, scored beside COCO's 100: map_at_300, ...", FROM_1
    )
    eval_loss: bool = option(False, "Also compute the loss of the evaluation split, term by term: eval_loss, ...")
    eval_predictions: bool = option(
        False, "Write what each evaluation finds as COCO results, eval/<step>/<weights>/predictions.json."
    )
    eval_per_class: bool = option(False, "Log the scores of each class, and print their table.")

    save_strategy: str = option("epoch", "When to write a checkpoint.", [s.value for s in SaveStrategy])
    save_steps: float = option(500, "Steps between checkpoints (below 1: a share of all steps).", POSITIVE)
    save_total_limit: int | None = option(2, "Checkpoints to keep besides best/ and last/; None keeps all.", FROM_1)
    async_save: bool = option(
        False, "Write checkpoints in the background, from a copy in host memory; not under FSDP2 or DeepSpeed."
    )
    load_best_model_at_end: bool = option(True, "After training the model in memory is the best one.")
    metric_for_best_model: str | None = option(
        None,
        "map, map_50, mar_100, ...: the best of raw and averaged weights; ema_map etc.: of the average alone. Default: "
        "the mAP of the model's task (map, segm_map, keypoint_map) of what is evaluated.",
    )
    greater_is_better: bool | None = option(None, "Whether a larger metric is better; default: where it is no loss.")
    skip_best_epochs: float = option(
        0.0, "The evaluations of so many first epochs choose no best model and stop nothing.", FROM_0
    )
    smooth_alpha: float = option(0.0, "Exponential smoothing of the metric that chooses the best model.", BELOW_1)
    early_stopping_patience: int | None = option(
        None, "Evaluations without improvement after which the run stops.", FROM_1
    )
    early_stopping_threshold: float = option(0.001, "Least improvement that counts for early stopping.", FROM_0)

    logging_strategy: str = option("steps", "When to log.", [s.value for s in IntervalStrategy])
    logging_steps: float = option(50, "Steps between log lines (below 1: a share of all steps).", POSITIVE)
    logging_first_step: bool = option(True, "Log the first step.")
    disable_tqdm: bool = option(False, "No progress bar.")
    report_to: str = option("none", "Trackers, separated by commas: tensorboard, wandb, mlflow, trackio, ...; or none.")
    tracker_kwargs: dict | str | None = option(
        None, 'Further arguments of trackers by name (JSON), such as {"wandb": {"entity": "us", "tags": ["a"]}}.'
    )
    project: str = option("rfdetr_hf", "Project (MLflow: experiment) of the trackers.")
    run_name: str | None = option(None, "Name of the run in the trackers; default: that of output_dir.")
    report_images: int = option(8, "Images with predictions that trackers get at each evaluation.", FROM_0)

    push_to_hub: bool = option(False, "Upload the run to the Hub, in the background.")
    hub_model_id: str | None = option(None, "user/name of the repository; default: the name of output_dir.")
    hub_strategy: str = option(
        "every_save",
        "Upload the model at the end, also at every save, also the last checkpoint, or also all checkpoints.",
        HUB_STRATEGIES,
    )
    hub_license: str = option("apache-2.0", "Licence of the model, as the Hub names licences; for its card.")
    hub_private_repo: bool | None = option(None, "Whether a new repository is private; default: the account's setting.")
    hub_token: str | None = dataclasses.field(
        default=None,
        repr=False,
        metadata={"help": "Token of the Hub; default: the login of this machine. Never saved."},
    )

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
        end_with_launcher()  # data and model, which come next, may take long
        if not isinstance(self.report_to, str):
            self.report_to = ",".join(map(str, self.report_to or ())) or "none"
        settle_options(self)
        self.eval_strategy = IntervalStrategy(self.eval_strategy)
        self.save_strategy = SaveStrategy(self.save_strategy)
        self.logging_strategy = IntervalStrategy(self.logging_strategy)
        for name in ("eval_steps", "save_steps", "logging_steps", "warmup_steps"):
            value = getattr(self, name)
            if value is not None and value >= 1:
                if value != int(value) or value >= 2**63:
                    raise ValueError(f"{name}={value!r} is not valid: from 1 on it counts steps, in full numbers")
                setattr(self, name, int(value))
        if self.eval_strategy == IntervalStrategy.STEPS and self.eval_steps is None:
            self.eval_steps = self.logging_steps
        self._check_combinations()
        self._check_schedules()

    def _check_combinations(self) -> None:
        evaluates, saves = self.eval_strategy != IntervalStrategy.NO, self.save_strategy != SaveStrategy.NO
        needs_evaluations = "needs evaluations; set eval_strategy to 'epoch' or 'steps'"
        metric = self.metric_for_best_model
        of_average = (metric or "").removeprefix("eval_").startswith("ema_")
        foreign = ", ".join(repr(name) for name in self.tracker_kwargs or () if name not in self.trackers)
        for condition, message in (
            (self.num_train_epochs == 0 and self.max_steps <= 0, "num_train_epochs=0 needs max_steps, at least 1"),
            (self.bf16 and self.fp16, "bf16 and fp16 exclude each other; set one of them"),
            (self.freeze_backbone and self.lora_r,
             "freeze_backbone and lora_r exclude each other; adapters freeze the encoder by themselves"),
            (self.warmup_steps and self.warmup_epochs,
             "warmup_steps and warmup_epochs exclude each other; set one of them"),
            (not evaluates and self.early_stopping_patience is not None,
             f"early_stopping_patience {needs_evaluations}"),
            (not evaluates and self.save_strategy == SaveStrategy.BEST, f"save_strategy='best' {needs_evaluations}"),
            (of_average and not self.use_ema, f"metric_for_best_model={metric!r} needs use_ema=True"),
            (foreign, f"tracker_kwargs names {foreign}, which is not in report_to={self.report_to!r}"),
            (self.push_to_hub and "checkpoint" in self.hub_strategy and not saves,
             f"hub_strategy={self.hub_strategy!r} needs checkpoints; set save_strategy to 'epoch'"),
        ):  # fmt: skip
            if condition:
                raise ValueError(message)

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

    def for_run(self, task: str, evaluated: Any = None) -> "RFDETRTrainingArguments":
        """A copy with a value for each option whose default depends on others, on the model's task or on the data.

        Args:
            task: of the model.
            evaluated: the evaluation data; of a mapping of data sets the first one chooses the best model.
        """
        start = f"{next(iter(evaluated))}_" if isinstance(evaluated, Mapping) and evaluated else ""
        start += "ema_" if self.evaluated_prefixes == ("ema_",) else ""
        metric = self.metric_for_best_model or start + TASKS[task].best_metric
        larger = larger_wins(metric) if self.greater_is_better is None else self.greater_is_better
        resolved = copy.deepcopy(self)
        resolved.metric_for_best_model, resolved.greater_is_better = metric, larger
        resolved.learning_rate_encoder = encoder_rate(self)
        return resolved

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for JSON or YAML; without secrets."""
        values = without_secrets(dataclasses.asdict(self))
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

    model_name_or_path: str | None = option(None, "A folder or Hub id to start from; default: random weights.")
    variant: str | None = option(
        None, "Size to build when model_name_or_path is not given; default: nano.", tuple(RFDETRConfig.variants())
    )
    config_overrides: dict | str | None = option(
        None, "Configuration fields to change (JSON, a YAML mapping or a file)."
    )
    resolution: int | None = option(None, "Side of the square input in pixels; default: the variant's.", FROM_1)
    revision: str | None = option(None, "Branch, tag or commit of model_name_or_path on the Hub.")
    class_init: str = option(
        "prior", "Class rows: kept by name and else new, all new, or repeated as rfdetr does.", CLASS_INITS
    )
    rename_classes: dict | str | None = option(
        None, "Classes of model_name_or_path that have another name in the data, {old: new} (JSON or a YAML mapping)."
    )
    init_backbone_from: str | None = option(None, "DINOv2 of transformers to start a variant's encoder from.")

    def __post_init__(self) -> None:
        settle_options(self)
        idle: dict[str, Any] = {"variant": None, "init_backbone_from": None}
        where = "with model_name_or_path"
        if self.model_name_or_path is None:
            self.variant = self.variant or "nano"
            where = "without model_name_or_path"
            idle = {"revision": None, "class_init": "prior", "rename_classes": None}
        elif is_official(self.model_name_or_path) and self.revision is not None:
            where, idle = f"on the file {self.model_name_or_path}", {"revision": None}
        for name, value in idle.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect {where}; leave one of them out")

    @property
    def task(self) -> str:
        """What the checkpoint or the variant is for: "detection", "segmentation" or "keypoints".

        Raises:
            FileNotFoundError, ValueError: the checkpoint is not there or cannot be read.
        """
        if self.model_name_or_path is not None:
            options = {} if self.revision is None else {"revision": self.revision}
            return source_task(self.model_name_or_path, **options)
        return RFDETRConfig.variants()[str(self.variant)].task

    @property
    def class_options(self) -> dict[str, Any]:
        """What `from_pretrained` and `from_official` do with the class rows of the checkpoint."""
        return {"class_init": self.class_init, "rename_classes": self.rename_classes}

    def config_fields(self, dataset: Dataset | None = None) -> dict[str, Any]:
        """The fields of the model's configuration that these options and the data decide.

        Args:
            dataset: gives `id2label`, and where it has keypoints their schema; None for the options alone.
        """
        fields = dict(cast(dict[str, Any], self.config_overrides or {}))
        fields |= {} if self.resolution is None else {"resolution": self.resolution}
        if dataset is None:
            return fields
        names = class_names(dataset)
        fields |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        if has_keypoints(dataset):
            schema = keypoint_schema(dataset)
            fields |= {"num_keypoints_per_class": schema.num_keypoints_per_class, "keypoint_schema": schema.to_dict()}
        return fields


@dataclass
class DataArguments:
    """Which data the example scripts and the command line load."""

    dataset_name: str = option("synthetic-shapes", "A folder, a Hub id or 'synthetic-shapes'.")
    dataset_config_name: str | None = option(None, "Configuration of a Hub data set.")
    dataset_revision: str | None = option(None, "Branch, tag or commit of a Hub data set.")
    image_dir: str | None = option(None, "Image folder of a COCO layout where it is not found by itself.")
    train_split: str | None = option(None, "Name of the training split where it is not 'train' or the like.")
    validation_split: str | None = option(None, "Name of the validation split, or a share of 'train' to hold out.")
    test_split: str | None = option(None, "Name of the test split where it is not 'test' or the like.")
    task: str | None = option(None, "What the objects need besides boxes; default: what the model needs.", tuple(TASKS))
    label_dir: str | None = option(None, "Label folder of a YOLO layout where it is not 'labels'.")
    bbox_format: str | None = option(None, "How boxes are written, where it is not as usual.", BOX_FORMATS)
    max_image_pixels: int | None = option(None, "Most pixels of an image; default: Pillow's limit.", FROM_1)
    missing_masks: str = option("error", "Objects without a mask: an error, or their box.", ("error", "box"))
    keypoint_schema: dict | str | None = option(
        None, "Names, skeleton, flip_pairs and sigmas of the keypoints of each class (JSON, a YAML mapping or a file)."
    )

    def __post_init__(self) -> None:
        if isinstance(self.validation_split, float):
            self.validation_split = str(self.validation_split)
        settle_options(self)
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
        share: Any = self.validation_split
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
            "bbox_format": self.bbox_format,
            "max_image_pixels": self.max_image_pixels,
            "missing_masks": self.missing_masks,
            "keypoint_schema": self.keypoint_schema,
        }
