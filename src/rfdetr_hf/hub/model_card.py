"""The `README.md` of a saved model."""

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path, PurePosixPath, PureWindowsPath
from string import Template
from typing import Any

import yaml
from datasets import Dataset
from huggingface_hub import EvalResult, ModelCardData, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedConfig

from ..choices import printable
from ..tasks import TASKS, Task
from .curves import evaluated_sets, save_curves

FRAMEWORKS = ("rfdetr-hf", "torch", "transformers", "accelerate", "datasets")
_BOX_METRICS = {
    "map": "mAP", "map_50": "mAP50", "map_75": "mAP75", "map_small": "mAP small", "map_medium": "mAP medium",
    "map_large": "mAP large", "mar_1": "mAR 1", "mar_10": "mAR 10", "mar_100": "mAR 100", "mar_small": "mAR small",
    "mar_medium": "mAR medium", "mar_large": "mAR large",
}  # fmt: skip
METRICS = (
    _BOX_METRICS
    | {f"segm_{name}": f"mask {title}" for name, title in _BOX_METRICS.items()}
    | {f"keypoint_{name}": f"keypoint {title}" for name, title in (_BOX_METRICS | {"mar_20": "mAR 20"}).items()}
)
CURVES = "curves.png"
_SHOWN_EVALUATIONS = 20
_COURSE = tuple(prefix + name for prefix in ("", "segm_", "keypoint_") for name in ("map", "map_50", "map_75"))
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_DOWNLOAD = re.compile(r"hf://datasets/([^@]+)@")


# What a task's models do that a reader of the card would not expect.
NESTED_OBJECTS = """
The pipeline gives each pixel to one object: of objects inside others, which `model.detect` keeps, it drops one.
"""
WITHOUT_KEYPOINTS = """
Scores of classes without keypoints ($classes) are at most 0.5: the code above takes 1/3 for these in place of 0.5, and
t / (1 + t) is right for any t, as `rfdetr-hf predict` does by itself.
"""
PLAIN_TRANSFORMERS = """
With plain transformers, without rfdetr_hf (its image processor needs torchvision):

```python
from transformers import AutoImageProcessor, $auto_class, pipeline

model = $auto_class.from_pretrained("$model_id")
processor = AutoImageProcessor.from_pretrained("$model_id")
detector = pipeline("$pipeline_tag", model=model, image_processor=processor)
print(detector("image.jpg", threshold=0.5))
```
"""


@dataclass(frozen=True)
class CardFacts:
    """What a model card says.

    Attributes:
        name: of the model.
        model_class: name of its class.
        config: its configuration.
        parameters: number of its parameters.
        metrics: by their logged names (`eval_map`, `eval_raw_map`, …); runtimes are left out.
        training_arguments: of the run, as plain values.
        log_history: what the run logged, for the table of evaluations and the curves.
        dataset: Hub id of the training data, if it comes from there.
        base_model: Hub id of the model that the training started from, if any.
        model_id: what the code of the card loads.
        license: of the model, as the Hub names licences.
        further: fields of the card's head that replace the others; `tags` come on top.
    """

    name: str
    model_class: str
    config: PreTrainedConfig
    parameters: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    training_arguments: Mapping[str, Any] = field(default_factory=dict)
    log_history: Sequence[Mapping[str, float]] = ()
    dataset: str | None = None
    base_model: str | None = None
    model_id: str = "PATH_OR_ID"
    license: str = "apache-2.0"
    further: Mapping[str, Any] = field(default_factory=dict)

    def described(
        self,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        dataset: str | Sequence[str] | None = None,
        **metadata: Any,
    ) -> "CardFacts":
        """The same with what a user says of the model; see `RFDETRTrainer.create_model_card`."""
        datasets = [dataset] if isinstance(dataset, str) else list(dataset or ())
        metadata |= {"datasets": datasets} if datasets else {}
        return replace(
            self,
            name=model_name or self.name,
            base_model=self.base_model if finetuned_from is None else hub_model_id(finetuned_from, fetched=False),
            further={**self.further, **metadata},
        )

    @property
    def task(self) -> Task:
        """That of the model's class."""
        return next(task for task in TASKS.values() if task.model_class == self.model_class)


def write_model_card(folder: Path, facts: CardFacts) -> None:
    """Write `README.md`: metadata, results, how to use the model; and `curves.png` unless the run draws no plots."""
    has_curves = bool(facts.training_arguments.get("plots", True)) and save_curves(facts.log_history, folder / CURVES)
    text = f"---\n{metadata(facts).to_yaml()}\n---\n{_body(facts, has_curves)}"
    (folder / "README.md").write_text(text, encoding="utf-8")


def metadata(facts: CardFacts) -> ModelCardData:
    """The card's YAML block, with the results as a `model-index`."""
    task = facts.task
    tags = facts.further.get("tags") or ()
    head: dict[str, Any] = {
        "model_name": " ".join(facts.name.split()),
        "library_name": "transformers" if task.auto_class else "rfdetr_hf",
        "pipeline_tag": task.pipeline_tag,
        "license": facts.license,
        "datasets": [facts.dataset] if facts.dataset else None,
        "base_model": facts.base_model,
        "metrics": ["map"] if facts.metrics else None,
        "eval_results": _eval_results(facts) or None,
        **facts.further,
        "tags": [task.pipeline_tag, "rf-detr", "rfdetr_hf", "vision", *([tags] if isinstance(tags, str) else tags)],
    }
    return ModelCardData(**head)


def hub_dataset_id(dataset: Dataset | None) -> str | None:
    """The Hub id of a data set that `datasets.load_dataset` downloaded, else None."""
    for url in (dataset.info.download_checksums or ()) if dataset is not None else ():
        if match := _DOWNLOAD.match(str(url)):
            return match[1]
    return None


def hub_model_id(name_or_path: str | None, fetched: bool = True) -> str | None:
    """`name_or_path` if it is a Hub id, else None.

    Args:
        name_or_path: what a model was loaded from.
        fetched: this machine must have fetched the model. A folder that was there when a model was loaded from it, such
            as "outputs/best", may be gone, and its name would pass.
    """
    text = str(name_or_path or "")
    if not _HUB_ID.fullmatch(text) or Path(text).exists():
        return None
    try:
        cached = try_to_load_from_cache(text, "config.json")
    except HFValidationError:
        return None
    return text if isinstance(cached, str) or not fetched else None


def _body(facts: CardFacts, has_curves: bool) -> str:
    task, config = facts.task, facts.config
    names_of_labels: Any = config.id2label
    names = {"model_id": facts.model_id, "auto_class": task.auto_class, "pipeline_tag": task.pipeline_tag}
    plain = Template(PLAIN_TRANSFORMERS).substitute(names) if task.auto_class else ""
    if task.object_field == "segmentation":
        plain += NESTED_OBJECTS
    labels = [as_text(name) for _, name in sorted(names_of_labels.items())]
    threshold = "0.5"
    if task.object_field == "keypoints":
        without = [row for row, count in enumerate(config.num_keypoints_per_class or []) if not count]
        if without:
            plain += Template(WITHOUT_KEYPOINTS).substitute(classes=", ".join(labels[row] for row in without))
            threshold = f"{{{', '.join(f'{row}: 1 / 3' for row in without)}}}"
    template = Template(files("rfdetr_hf.hub").joinpath("templates/model_card.md").read_text(encoding="utf-8"))
    return template.substitute(
        title=f"{as_text(facts.name)}: RF-DETR trained with rfdetr_hf",
        task_name=task.title,
        num_labels=config.num_labels,
        resolution=config.resolution,
        parameters=f"{facts.parameters / 1e6:.1f}",
        trained_on=f" on [{as_text(facts.dataset)}](https://huggingface.co/datasets/{facts.dataset})"
        if facts.dataset
        else "",
        classes=", ".join(labels),
        model_class=facts.model_class,
        model_id=facts.model_id,
        threshold=threshold,
        plain_transformers=plain,
        results=_table(facts.metrics) or "Not evaluated.",
        evaluations=_evaluations(facts.log_history) + (f"\n![Losses and AP]({CURVES})\n" if has_curves else ""),
        arguments=_arguments(facts.training_arguments),
        versions="\n".join(f"- {name} {version(name)}" for name in FRAMEWORKS)
        + f"\n- Python {platform.python_version()}",
    )


def as_text(name: str) -> str:
    """A name as Markdown that shows it, on one line, whatever it holds: HTML, links, tables, line breaks."""
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", escape(printable(" ".join(str(name).split())), quote=False))


def _arguments(values: Mapping[str, Any]) -> str:
    """The arguments as YAML. Of paths on this machine the last part alone is anybody's business."""
    return yaml.safe_dump(_without_folders(values), sort_keys=False, allow_unicode=True).replace("```", "'''")


def _without_folders(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_folders(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_folders(each) for each in value]
    is_path = isinstance(value, str) and (PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute())
    return PureWindowsPath(value).name if is_path else value


def _scores(metrics: Mapping[str, float]) -> list[tuple[str, str, str, float]]:
    """Split, name, title and value of each score; left out is what is no score, or has nothing to score."""
    found, sets = [], evaluated_sets([metrics])
    for name, value in metrics.items():
        split = next((each for each in sets if name.startswith(f"{each}_")), name.partition("_")[0])
        rest = name.removeprefix(split).removeprefix("_")
        metric = rest.removeprefix("raw_")
        if name != split and metric in METRICS and value >= 0:
            title = METRICS[metric] + (" of the raw weights" if rest != metric else "")
            found.append((split, metric, title, float(value)))
    return found


def _eval_results(facts: CardFacts) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=facts.task.pipeline_tag,
            task_name=facts.task.title,
            dataset_type=facts.dataset or "custom",
            dataset_name=facts.dataset or "custom data",
            dataset_split=split,
            metric_type=metric,
            metric_name=title,
            metric_value=round(value, 5),
        )
        for split, metric, title, value in _scores(facts.metrics)
    ]


def _table(metrics: Mapping[str, float]) -> str:
    rows = [f"| {as_text(split)} | {title} | {value:.4f} |" for split, _, title, value in _scores(metrics)]
    return "\n".join(["| split | metric | value |", "|---|---|---|", *rows]) if rows else ""


def _evaluations(log_history: Sequence[Mapping[str, float]]) -> str:
    """The course of the run: at most `_SHOWN_EVALUATIONS` evaluations, evenly spread, the last included."""
    rows: dict[float, list[str]] = {}
    sets, shown = evaluated_sets(log_history), []
    several = len(sets) > 1
    for row in log_history:
        for name in (each for each in sets if f"{each}_map" in row):
            shown = [score for score in _COURSE if f"{name}_{score}" in row]
            values = " | ".join(f"{row[f'{name}_{score}']:.4f}" for score in shown)
            of = f" {as_text(name.removeprefix('eval_'))} |" if several else ""
            rows.setdefault(row["step"], []).append(f"| {row['step']} | {row['epoch']:.2f} |{of} {values} |")
    if not rows:
        return ""
    steps, count = list(rows), min(len(rows), _SHOWN_EVALUATIONS)
    chosen = [line for i in range(count) for line in rows[steps[round((i + 1) * len(steps) / count) - 1]]]
    columns = ["step", "epoch", *(["data"] if several else []), *(METRICS[name] for name in shown)]
    return "\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *chosen]) + "\n"
