"""What `recipe: official` means: the options whose defaults here are others than in rfdetr 1.11.2."""

from typing import Any

OFFICIAL: dict[str, Any] = {
    "gradient_accumulation_steps": 1,
    "param_groups": "official",
    "lr_scheduler_type": "step",
    "eval_max_dets": 500,
    "load_best_model_at_end": False,
}
OFFICIAL_BY_TASK: dict[str, dict[str, Any]] = {"keypoints": {"skip_best_epochs": 10.0, "smooth_alpha": 0.5}}
OFFICIAL_OF_TASKS: dict[str, Any] = {"skip_best_epochs": 0.0, "smooth_alpha": 0.0}
"""What the tasks that are not in the table have of it."""
_ALIKE: dict[str, Any] = {
    "per_device_train_batch_size": 4, "learning_rate": 1e-4, "learning_rate_encoder": 1.5e-4, "layer_decay": 0.8,
    "component_decay": 0.7, "weight_decay": 1e-4, "max_grad_norm": 0.1, "warmup_steps": 0, "warmup_epochs": 0.0,
    "lr_drop_epochs": 100.0, "min_lr_ratio": 0.0, "use_ema": True, "ema_decay": 0.993, "ema_tau": 100.0,
    "ema_update_interval": 1, "drop_path": 0.0, "multi_scale": "per_batch", "expanded_scales": True,
    "square_resize": True, "scale_jitter": True, "horizontal_flip": 0.5, "skip_best_epochs": 0.0, "smooth_alpha": 0.0,
    "eval_raw_weights": False, "num_train_epochs": 100.0, "max_steps": -1,
}  # fmt: skip


def official_metric(best_metric: str, max_dets: int) -> str:
    """What chooses the best model there: AP at `eval_max_dets` detections of an image, keypoints at COCO's 20."""
    return best_metric if best_metric.startswith("keypoint") or max_dets == 100 else f"{best_metric}_at_{max_dets}"


def departures(args: Any, task: str) -> list[str]:
    """The options of a training that are others than rfdetr's, "name=value (official: value)".

    Args:
        args: the arguments of a training.
        task: of the model.
    """
    official = _ALIKE | OFFICIAL | OFFICIAL_BY_TASK.get(task, {})
    given = {name: getattr(args, name) for name in official}
    given["learning_rate_encoder"] = given["learning_rate_encoder"] or official["learning_rate_encoder"]
    return [f"{name}={given[name]!r} (official: {value!r})" for name, value in official.items() if given[name] != value]
