"""The options of a training."""

import copy
import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, cast

from ..choices import (
    AUDITS,
    AUGMENTATIONS,
    DROP_PATH_MODES,
    DROP_PATH_SCHEDULES,
    HUB_STRATEGIES,
    IMAGE_DECODERS,
    INTERVALS,
    MULTI_SCALE_MODES,
    PARAM_GROUPS,
    PICTURE_CACHE,
    PICTURE_CACHES,
    PRECISIONS,
    RECIPES,
    SAVES,
    SCHEDULES,
)
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
    shown,
    without_secrets,
)
from ..tasks import TASKS
from .idle import refuse_idle
from .metric_names import competing_names, larger_wins, present_metric, without_raw
from .recipes import OFFICIAL, OFFICIAL_BY_TASK, OFFICIAL_OF_TASKS, departures, official_metric
from .runtime import AUTO, MICRO_BATCH, STEP, RuntimeFacts
from .schedules import check_schedule_options, encoder_rate
from .words import answers_by_name

logger = logging.getLogger(__name__)


@answers_by_name
@dataclass
class RFDETRTrainingArguments(RuntimeFacts):
    """All options of a training. Names are those of `transformers.TrainingArguments` where it has one.

    The defaults are the published fine-tuning recipe with the departures that the training guide lists: AdamW at 1e-4
    (encoder 1.5e-4, decayed by layer), effective batch 16, constant learning rate, clipping at 0.1, EMA 0.993,
    multi-scale from five blocks below to five above the resolution. `recipe="official"` is rfdetr's run without these
    departures.

    Raises:
        ValueError: for a value out of its range or a combination that contradicts itself; the message names the fields.
    """

    output_dir: str = option(
        "outputs",
        "Directory of the run: checkpoints, best/, last/, metrics.csv, train.log.",
        group="saving",
        daily=True,
    )

    num_train_epochs: float = option(100.0, "Passes over the training split.", FROM_0, group="schedule", daily=True)
    max_steps: int = option(-1, "Optimizer steps; when positive it replaces num_train_epochs.")
    per_device_train_batch_size: int | str = option(
        MICRO_BATCH,
        "Images of one micro-batch on one device; auto: as many as the memory holds, found before the first step.",
        FROM_1,
        words=(AUTO,),
        daily=True,
    )
    per_device_eval_batch_size: int | None = option(
        None, "Images of one evaluation batch; default: the training one.", FROM_1
    )
    gradient_accumulation_steps: int | None = option(
        None,
        "Micro-batches of one optimizer step; default: 4, or what follows from total_train_batch_size.",
        FROM_1,
        daily=True,
    )
    total_train_batch_size: int | None = option(
        None,
        "Images of one optimizer step over all processes, kept by accumulation; default: 16 where "
        "per_device_train_batch_size is auto, else what the other sizes make.",
        FROM_1,
    )

    learning_rate: float = option(
        1e-4, "Learning rate of projector, heads and queries.", Range(0, 10, "(]"), group="optimizer", daily=True
    )
    learning_rate_encoder: float | None = option(
        None,
        "Learning rate of the encoder, before layer and component decay; default: 1.5 times learning_rate.",
        Range(0, 10, "(]"),
    )
    layer_decay: float = option(
        0.8, "Factor on the encoder's learning rate for each layer away from its output.", FACTOR
    )
    component_decay: float = option(0.7, "Factor on the decoder's learning rate; squared on the encoder's.", FACTOR)
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
    freeze_backbone: bool = option(False, "Train projector, decoder and heads only.", group="fine-tuning")
    freeze_encoder_blocks: int = option(0, "First encoder blocks that are not trained; nor the embeddings.", FROM_0)
    lora_r: int = option(
        0, "Rank of adapters that are trained instead of the encoder (extra 'lora'); 0 for none.", FROM_0
    )
    lora_alpha: float = option(16.0, "The adapters' output is multiplied by lora_alpha / lora_r.", POSITIVE)
    lora_dropout: float = option(0.0, "Dropout in front of the adapters.", BELOW_1)
    lora_target_modules: str = option("query,key,value", "Adapted layers: query, key, value, dense, fc1, fc2.")
    use_dora: bool = option(False, "DoRA: adapters that learn the length of each weight row apart from its direction.")

    lr_scheduler_type: str = option(
        "constant", "constant, step, cosine or one of transformers.", SCHEDULES, group="schedule"
    )
    lr_scheduler_kwargs: dict | str | None = option(None, "Further arguments of a transformers scheduler (JSON).")
    warmup_steps: float = option(0, "Linear warm-up in optimizer steps; a share of all steps when below 1.", FROM_0)
    warmup_epochs: float = option(0.0, "Linear warm-up in epochs; excludes warmup_steps.", FROM_0)
    min_lr_ratio: float = option(
        0.0, "Floor of the cosine schedule, as a share of the full learning rate.", PROBABILITY
    )
    lr_drop_epochs: float = option(100.0, "Epoch at which the step schedule divides the learning rate by ten.", FROM_0)
    recipe: str = option(
        "default", "official: a run like rfdetr's own, in groups, schedule, EMA, scales and best model.", RECIPES
    )

    use_ema: bool = option(
        True,
        "Keep an exponential moving average of the weights, evaluate it and save it.",
        group="EMA",
        no="Train without EMA weights: the raw ones are evaluated and saved.",
    )
    ema_decay: float = option(0.993, "Decay that the EMA reaches.", BELOW_1)
    ema_tau: float = option(
        100.0, "Warm-up of the decay in updates: decay * (1 - exp(-updates / tau)); 0 for none.", FROM_0
    )
    ema_update_interval: int = option(1, "Optimizer steps from one update of the EMA to the next.", FROM_1)

    drop_path: float = option(
        0.0, "Peak stochastic-depth rate of the encoder's last block.", BELOW_1, group="augmentation"
    )
    drop_path_mode: str = option("standard", "Whole run, before or after drop_path_cutoff_epochs.", DROP_PATH_MODES)
    drop_path_schedule: str = option("constant", "Constant, or a linear ramp over its phase.", DROP_PATH_SCHEDULES)
    drop_path_cutoff_epochs: float = option(0.0, "Boundary of the early and late modes.", FROM_0)

    multi_scale: str = option("per_batch", "A scale per optimizer step, per sample, or none.", MULTI_SCALE_MODES)
    expanded_scales: bool = option(
        True,
        "Scales from -5 to +5 blocks around the resolution.",
        no="Scales from -3 to +4 blocks around the resolution.",
    )
    square_resize: bool = option(
        True, "Resize to a square.", no="Keep the aspect ratio and pad, in training and afterwards."
    )
    scale_jitter: bool = option(
        True, "Half of the training images pass through a random resized crop.", no="No random resized crops."
    )
    horizontal_flip: float = option(0.5, "Probability of a horizontal flip.", PROBABILITY)
    augmentation: dict | str = option(
        "default",
        "A preset, or transforms over one (JSON, a YAML mapping or a file). scale_jitter and horizontal_flip are the "
        "preset's where they are not given.",
        AUGMENTATIONS,
    )
    close_strong_augmentation_epochs: float = option(
        10.0, "Last epochs without mosaic, mixup and copy_paste; part of one counts as one.", FROM_0
    )

    image_decoder: str = option(
        "pillow", "Who reads JPEG files: pillow, or simplejpeg, which is faster.", IMAGE_DECODERS
    )
    cache_images: str = option(
        "none", "Keep decoded pictures for later epochs, shared by the workers: none, ram, disk.", PICTURE_CACHES
    )
    cache_images_gb: float = option(16, "Gigabytes of decoded pictures on this machine.", POSITIVE)
    cache_images_dir: str = option(PICTURE_CACHE, "Folder of cache_images=disk.")
    dataloader_num_workers: int | None = option(
        None,
        "Worker processes of each loader; default: one for each core of this process, at most 8.",
        FROM_0,
        group="data",
    )
    dataloader_pin_memory: bool = option(
        True, "Pin batches when the device is a GPU.", no="Leave batches in pageable memory."
    )
    dataloader_persistent_workers: bool = option(
        True, "Keep the workers from epoch to epoch.", no="Start new workers for each epoch."
    )
    dataloader_prefetch_factor: int | None = option(None, "Batches that each worker loads ahead.", FROM_1)
    dataloader_timeout: float = option(
        600, "Seconds after which a batch that the workers do not give ends the run; 0 for never.", FROM_0
    )
    audit: str = option("full", "Decode every image before the first step, read headers only, or neither.", AUDITS)

    mixed_precision: str = option(
        "auto",
        "auto: bf16 on GPUs that have it, fp16 on others, float32 elsewhere; no is float32.",
        PRECISIONS,
        group="system",
    )
    bf16: bool = option(False, "The same as mixed_precision bf16: bfloat16 autocast.")
    fp16: bool = option(False, "The same as mixed_precision fp16: float16 autocast with a gradient scaler (GPU only).")
    tf32: bool = option(
        True,
        "Allow TF32 matrix products in float32 parts on GPUs that have them.",
        no="Compute float32 parts in full float32.",
    )
    torch_compile: bool = option(
        False, "Compile the network of a training step; blocks alone under FSDP2 and DeepSpeed."
    )
    torch_compile_backend: str = option("inductor", "What compiles it.")
    gradient_checkpointing: bool = option(False, "Recompute encoder blocks in the backward pass to save memory.")
    max_skipped_steps: int = option(20, "Non-finite steps in a row that end the run with an error.", FROM_0)
    seed: int = option(42, "Seed of data order, augmentation, scales and drop path.", Range(0, 2**32 - 1), daily=True)
    ddp_timeout: int = option(1800, "Seconds that a process waits for the others before it gives up.", POSITIVE)
    full_determinism: bool = option(
        False, "Deterministic kernels (slower) where PyTorch has them; it warns of each that has none."
    )

    eval_strategy: str = option("epoch", "When to evaluate.", INTERVALS, group="evaluation")
    eval_steps: float | None = option(None, "Steps between evaluations (below 1: a share of all steps).", POSITIVE)
    eval_delay: float = option(0, "Epochs or steps before the first evaluation.", FROM_0)
    eval_on_start: bool = option(False, "Evaluate before the first step.")
    eval_raw_weights: bool = option(False, "With EMA: evaluate the raw weights too: raw_map, ...")
    eval_max_dets: int = option(
        100, "Another limit of detections per image and class, scored beside COCO's 100: map_at_300, ...", FROM_1
    )
    eval_loss: bool = option(False, "Also compute the loss of the evaluation split, term by term: eval_loss, ...")
    eval_predictions: bool = option(
        False, "Write what each evaluation finds as COCO results, eval/<step>/<weights>/predictions.json."
    )
    eval_per_class: bool = option(False, "Log the scores of each class, and print their table.")

    save_strategy: str = option("epoch", "When to write a checkpoint.", SAVES, group="saving")
    save_steps: float = option(500, "Steps between checkpoints (below 1: a share of all steps).", POSITIVE)
    save_total_limit: int | None = option(2, "Checkpoints to keep besides best/ and last/; None keeps all.", FROM_1)
    async_save: bool = option(
        False, "Write checkpoints in the background, from a copy in host memory; not under FSDP2 or DeepSpeed."
    )
    load_best_model_at_end: bool = option(
        True,
        "After training the model in memory is the best one.",
        group="evaluation",
        no="After training the model in memory is the last one.",
    )
    metric_for_best_model: str | None = option(
        None,
        "map, map_50, mar_100, ...: of the EMA weights if there are any; raw_map, ...: of the raw weights beside them; "
        "map,raw_map: of both, the higher one counts. Default: map, segm_map or keypoint_map, by the model's task.",
    )
    greater_is_better: bool | None = option(None, "Whether a larger metric is better; default: where it is no loss.")
    skip_best_epochs: float = option(
        0.0, "The evaluations of so many first epochs choose no best model and stop nothing.", FROM_0
    )
    smooth_alpha: float = option(0.0, "Exponential smoothing of the metric that chooses the best model.", BELOW_1)
    early_stopping_patience: int | None = option(
        None, "Evaluations without improvement after which the run stops.", FROM_1
    )
    early_stopping_threshold: float = option(0.001, "Smallest improvement that counts for early stopping.", FROM_0)

    logging_strategy: str = option("steps", "When to log.", INTERVALS, group="logging")
    logging_steps: float = option(50, "Steps between log lines (below 1: a share of all steps).", POSITIVE)
    logging_first_step: bool = option(True, "Log the first step.", no="Do not log the first step.")
    plots: bool = option(
        True,
        "Draw labels.jpg, train_batch.jpg, results.png, val_pred.jpg, curves, and the pictures of report.html.",
        no="Draw no pictures; the report has tables and sentences.",
    )
    disable_tqdm: bool = option(False, "No progress bar; in a file or a pipe there is none anyway.")
    report_to: str = option("none", "Trackers, separated by commas: tensorboard, wandb, mlflow, trackio, ...; or none.")
    tracker_kwargs: dict | str | None = option(
        None, 'Further arguments of trackers by name (JSON), such as {"wandb": {"entity": "us", "tags": ["a"]}}.'
    )
    project: str = option("rfdetr_hf", "Project (MLflow: experiment) of the trackers.")
    run_name: str | None = option(None, "Name of the run in the trackers; default: that of output_dir.")
    report_images: int = option(8, "Images with predictions that trackers get at each evaluation.", FROM_0)

    push_to_hub: bool = option(False, "Upload the run to the Hub, in the background.", group="hub")
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

    resume_from_checkpoint: str | None = option(
        None,
        "Go on from a checkpoint: a folder, user/repo on the Hub, or 'true' (the same as no value) for the newest of "
        "output_dir that is complete; 'auto': likewise, or start from the beginning where there is none.",
        group="saving",
        daily=True,
        nargs="?",
        const="true",
    )
    derived: dict | str | None = option(
        None,
        "Options that followed from others, with these values, and follow from them again; a run writes it (JSON, a "
        "YAML mapping).",
    )

    def __new__(cls, *values: Any, **options: Any) -> "RFDETRTrainingArguments":
        """An instance that knows which options it was given."""
        made = super().__new__(cls)
        made.__dict__["_given"] = frozenset([*options, *(each.name for each in dataclasses.fields(cls)[: len(values)])])
        return made

    _given: ClassVar[frozenset[str]]  # set on each instance; as a class variable it is no field
    _is_settled: ClassVar[bool] = False
    _departures: ClassVar[list[str]] = []  # from the official recipe, as they were told

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if self._is_settled:  # else a default, or what follows from others
            self.__dict__["_given"] |= {name}

    def __post_init__(self) -> None:
        is_new, self.__dict__["_is_settled"] = not self._is_settled, False
        if not isinstance(self.report_to, str):
            self.report_to = ",".join(map(str, self.report_to or ())) or "none"
        settle_options(self)
        before = self._take_back(is_new)
        if self.is_official:
            for name, usual in (OFFICIAL_OF_TASKS | OFFICIAL).items():
                if name not in (*self._given, "gradient_accumulation_steps"):
                    self._derive(name, before.get(name, usual) if name in OFFICIAL_OF_TASKS else usual)
        self._settle_accumulation()
        self._settle_augmentation()
        # Callbacks of transformers ask these for their values.
        from transformers.trainer_utils import IntervalStrategy, SaveStrategy

        self.eval_strategy = IntervalStrategy(self.eval_strategy)
        self.save_strategy = SaveStrategy(self.save_strategy)
        self.logging_strategy = IntervalStrategy(self.logging_strategy)
        for name in ("eval_steps", "save_steps", "logging_steps", "warmup_steps"):
            value = getattr(self, name)
            if value is not None and value >= 1:
                if value != int(value) or value >= 2**63:
                    raise ValueError(f"{name}={value!r} is not valid: from 1 on it counts steps, in full numbers")
                setattr(self, name, int(value))
        if self.eval_strategy == "steps" and self.eval_steps is None:
            self._derive("eval_steps", self.logging_steps)
        self._check_combinations()
        check_schedule_options(self.lr_scheduler_type, self)
        refuse_idle(self, is_new)
        self.__dict__["_is_settled"] = True
        now: Any = self.derived
        changed = [f"{name} {old} -> {now[name]}" for name, old in before.items() if now.get(name, old) != old]
        if is_new and changed:
            logger.warning("options that follow from others follow again: %s", ", ".join(changed))

    def _take_back(self, is_new: bool) -> dict[str, Any]:
        """Forget the values that followed from other options; returns them.

        Args:
            is_new: whether the values were handed over, by a file or a copy, and perhaps others in their place.
        """
        before, self.derived = dict(cast(dict[str, Any], self.derived or {})), {}
        defaults = {each.name: each.default for each in dataclasses.fields(self)}
        if unknown := ", ".join(before.keys() - defaults.keys()):
            raise ValueError(f"derived names {unknown}, which is no option; leave it out")
        if is_new:
            self.__dict__["_given"] -= {name for name, value in before.items() if getattr(self, name) == value}
        for name in before.keys() - self._given:
            setattr(self, name, defaults[name])
        return before

    def _derive(self, name: str, value: Any) -> None:
        """Give an option the value that follows from others; who gave None for it left it to them."""
        derived: Any = self.derived
        self.__dict__[name] = derived[name] = value
        self.__dict__["_given"] -= {name}

    def _settle_accumulation(self) -> None:
        """Take the usual accumulation, unless it follows from the images of a step."""
        if self.is_automatic_batch and self.gradient_accumulation_steps is not None:
            raise ValueError(
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} contradicts "
                "per_device_train_batch_size='auto', under which it follows from total_train_batch_size "
                f"({self.images_per_step}); leave it out"
            )
        if self.images_per_step is None and self.gradient_accumulation_steps is None:
            usual = OFFICIAL["gradient_accumulation_steps"] if self.is_official else STEP // MICRO_BATCH
            self._derive("gradient_accumulation_steps", usual)

    def _settle_augmentation(self) -> None:
        """Take the geometry of the augmentation where it is not given by itself."""
        from ..data.pipeline.presets import GEOMETRY, read_augmentation

        members = read_augmentation(self.augmentation)
        for name in GEOMETRY:
            if name not in self._given:
                self._derive(name, members[name])
            elif name in self.augmentation and isinstance(self.augmentation, dict):
                if self.augmentation[name] != getattr(self, name):
                    raise ValueError(
                        f"{name}={getattr(self, name)!r} contradicts augmentation, whose {name} is "
                        f"{self.augmentation[name]!r}; leave one of them out"
                    )

    def _check_combinations(self) -> None:
        evaluates, saves = self.eval_strategy != "no", self.save_strategy != "no"
        needs_evaluations = "needs evaluations; set eval_strategy to 'epoch' or 'steps'"
        metric = self.metric_for_best_model or ""
        names = competing_names(metric)
        of_average = names[0].startswith("ema_")
        several = len(names) > 2 or len({without_raw(name) for name in names}) > 1
        foreign = ", ".join(repr(name) for name in self.tracker_kwargs or () if name not in self.trackers)
        for condition, message in (
            (self.num_train_epochs == 0 and self.max_steps <= 0, "num_train_epochs=0 needs max_steps, at least 1"),
            (self.bf16 and self.fp16, "bf16 and fp16 exclude each other; set one of them"),
            (self.mixed_precision not in ("auto", self.precision_asked),
             f"mixed_precision={self.mixed_precision!r} and {self.precision_asked}=True exclude each other; set one"),
            (self.freeze_backbone and self.lora_r,
             "freeze_backbone and lora_r exclude each other; adapters freeze the encoder by themselves"),
            (self.drop_path and self.drop_path_mode == "early" and not self.drop_path_cutoff_epochs,
             "drop_path_mode='early' has no drop path before drop_path_cutoff_epochs=0; set that to some epochs"),
            (self.warmup_steps and self.warmup_epochs,
             "warmup_steps and warmup_epochs exclude each other; set one of them"),
            (not evaluates and self.early_stopping_patience is not None,
             f"early_stopping_patience {needs_evaluations}"),
            (not evaluates and self.save_strategy == "best", f"save_strategy='best' {needs_evaluations}"),
            (of_average and not self.use_ema, f"metric_for_best_model={metric!r} needs use_ema=True"),
            (several,
             f"metric_for_best_model={metric!r} names several scores; name one, or one of EMA and raw weights, such as "
             "'map,raw_map'"),
            (foreign, f"tracker_kwargs names {foreign}, which is not in report_to={self.report_to!r}"),
            (self.push_to_hub and "checkpoint" in self.hub_strategy and not saves,
             f"hub_strategy={self.hub_strategy!r} needs checkpoints; set save_strategy to 'epoch'"),
        ):  # fmt: skip
            if condition:
                raise ValueError(message)

    @property
    def eval_batch_size(self) -> int:
        """Images of one evaluation batch on one device."""
        return self.per_device_eval_batch_size or self.train_batch_size

    @property
    def evaluated_prefixes(self) -> tuple[str, ...]:
        """What is evaluated, by prefix: "" for the weights that `best/` takes, EMA if it is on; "raw_" beside EMA."""
        return ("raw_", "") if self.use_ema and self.eval_raw_weights else ("",)

    @property
    def is_official(self) -> bool:
        """Whether the run is to be as rfdetr's own."""
        return self.recipe == "official"

    @property
    def precision_asked(self) -> str | None:
        """What these arguments ask for: "no", "bf16" or "fp16"; None where launcher and device decide."""
        named = "bf16" if self.bf16 else "fp16" if self.fp16 else self.mixed_precision
        return None if named == "auto" else named

    def use_precision(self, name: str) -> None:
        """Set `mixed_precision` and with it `bf16` and `fp16`."""
        self.mixed_precision, self.bf16, self.fp16 = name, name == "bf16", name == "fp16"

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

        Raises:
            ValueError: a value that was set since these arguments were made is not valid.
        """
        resolved = copy.deepcopy(self)
        resolved.__post_init__()
        start = f"{next(iter(evaluated))}_" if isinstance(evaluated, Mapping) and evaluated else ""
        best = TASKS[task].best_metric
        best = official_metric(best, resolved.eval_max_dets) if self.is_official else best
        metric = resolved.metric_for_best_model or start + best
        sets = list(evaluated) if isinstance(evaluated, Mapping) else []
        present = present_metric(metric, sets)
        if present != metric:
            logger.warning("metric_for_best_model: %s is called %s now, the score of the EMA weights", metric, present)
            metric = present
        larger = larger_wins(metric, sets)
        if self.is_official:
            # Also those that are no task's own: the values at hand may be of a run of another task.
            for name, value in (OFFICIAL_OF_TASKS | OFFICIAL_BY_TASK.get(task, {})).items():
                if name not in self._given:
                    resolved._derive(name, value)
            left = departures(resolved, task)
            if left and left != self._departures:
                logger.warning("recipe official, except for what is given: %s", ", ".join(left))
            resolved.__dict__["_departures"] = left
        if resolved.metric_for_best_model is not None:
            resolved.metric_for_best_model = metric
        follows = {"metric_for_best_model": metric, "greater_is_better": larger,
                   "learning_rate_encoder": encoder_rate(resolved)}  # fmt: skip
        for name in [name for name in follows if getattr(resolved, name) is None]:
            resolved._derive(name, follows[name])
        return resolved

    def follow(self, task: str, evaluated: Any = None) -> None:
        """Check the values again, which may have been set since, and let others follow from them.

        Args:
            task, evaluated: as for `for_run`.

        Raises:
            ValueError: one is not valid, or contradicts others; nothing is changed.
        """
        self.__dict__.update(self.for_run(task, evaluated).__dict__)

    def __repr__(self) -> str:
        return shown(self)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for JSON or YAML; without secrets."""
        values = without_secrets(dataclasses.asdict(self))
        return {k: v.value if isinstance(v, Enum) else v for k, v in values.items()}

    def to_sanitized_dict(self) -> dict[str, Any]:
        """The fields as values that every tracker takes (numbers, strings, booleans)."""
        return {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in self.to_dict().items()}

    def to_json_string(self) -> str:
        """The fields as indented JSON."""
        return json.dumps(self.to_dict(), indent=2)
