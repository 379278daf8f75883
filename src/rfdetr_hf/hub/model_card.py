"""The `README.md` of a saved model."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from transformers import PreTrainedConfig

FRAMEWORKS = ("rfdetr-hf", "torch", "transformers", "accelerate", "datasets")

BODY = """
# {title}

An [RF-DETR](https://github.com/roboflow/rf-detr) object detector with {num_labels} classes,
input {resolution} × {resolution}, trained with rfdetr_hf.

Classes: {classes}

## Use

```python
from rfdetr_hf import RFDETRForObjectDetection, RFDETRImageProcessor
from PIL import Image
import torch

model = RFDETRForObjectDetection.from_pretrained("PATH_OR_ID").eval()
processor = RFDETRImageProcessor.from_pretrained("PATH_OR_ID")
image = Image.open("image.jpg")
with torch.no_grad():
    outputs = model(**processor(image, return_tensors="pt"))
sizes = [(image.height, image.width)]
detections = processor.post_process_object_detection(outputs, threshold=0.5, target_sizes=sizes)[0]
```

Plain `transformers.AutoModelForObjectDetection.from_pretrained` reads this folder as well.

## Results

{results}

## Training arguments

```yaml
{arguments}```

## Versions

{versions}
"""


def write_model_card(
    folder: Path, name: str, config: PreTrainedConfig, metrics: dict[str, float], training_arguments: dict[str, Any]
) -> None:
    """Write `README.md` with metadata, results and how to use the model.

    Args:
        folder: a folder that holds the saved model.
        name: of the model.
        config: its configuration.
        metrics: COCO metrics by their logged names (`eval_map`, `eval_ema_map`, …); runtimes are left out.
        training_arguments: the arguments of the run, as plain values.
    """
    scores = {k: v for k, v in metrics.items() if isinstance(v, float) and not k.endswith("_runtime")}
    data = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag="object-detection",
        license="apache-2.0",
        tags=["object-detection", "rf-detr", "rfdetr_hf"],
        eval_results=_eval_results(scores) or None,
    )
    body = BODY.format(
        title="RF-DETR fine-tuned with rfdetr_hf",
        num_labels=config.num_labels,
        resolution=config.resolution,
        classes=", ".join(config.id2label[i] for i in range(config.num_labels)),
        results=_table(scores) or "Not evaluated.",
        arguments=yaml.safe_dump(training_arguments, sort_keys=False),
        versions="\n".join(f"- {name} {version(name)}" for name in FRAMEWORKS)
        + f"\n- Python {platform.python_version()}",
    )
    (folder / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n{body}", encoding="utf-8")


def _eval_results(scores: dict[str, float]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="object-detection",
            dataset_type="custom",
            dataset_name="evaluation split",
            metric_type=name,
            metric_value=round(value, 5),
        )
        for name, value in scores.items()
        if value >= 0
    ]


def _table(scores: dict[str, float]) -> str:
    rows = [f"| {name} | {value:.4f} |" for name, value in scores.items()]
    return "\n".join(["| metric | value |", "|---|---|", *rows]) if rows else ""
