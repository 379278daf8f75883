"""Write one model card for each published variant, from the table of variants and the published results.

python model_cards/generate.py
"""

from pathlib import Path
from typing import NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from rfdetr_hf import RFDETRConfig
from rfdetr_hf.models.configuration_rfdetr import Variant
from rfdetr_hf.models.files.published import official_file, published_id

PAPER = "https://arxiv.org/abs/2511.09554"
TASKS = {
    "detection": ("object detection", "object-detection", "RFDETRForObjectDetection", "box AP"),
    "segmentation": ("instance segmentation", "image-segmentation", "RFDETRForInstanceSegmentation", "mask AP"),
    "keypoints": ("keypoint detection", "keypoint-detection", "RFDETRForKeypointDetection", "keypoint AP"),
}


class Published(NamedTuple):
    """Published results of a variant.

    Attributes:
        coco: AP on COCO val2017; two numbers where paper and package differ.
        rf100: mean AP on RF100-VL, likewise.
        latency: milliseconds on an NVIDIA T4, TensorRT, float16, batch 1.
    """

    coco: tuple[float, ...]
    rf100: tuple[float, ...] = ()
    latency: float | None = None


RESULTS = {
    "nano": Published((48.0, 48.4), (57.7, 57.8), 2.3),
    "small": Published((52.9, 53.0), (60.2, 60.9), 3.5),
    "medium": Published((54.7,), (61.2, 61.7), 4.4),
    "large": Published((56.5,), (62.2,), 6.8),
    "seg-nano": Published((40.3,)),
    "seg-small": Published((43.1,)),
    "seg-medium": Published((45.3,)),
    "seg-large": Published((47.1,)),
    "seg-xlarge": Published((48.8,)),
    "seg-2xlarge": Published((49.9,)),
    "keypoint-preview": Published((71.8,), (), 9.7),
}

CONVERTED = """From the published weights, with the classes that they know:

```bash
rfdetr-hf convert {file} {folder} --variant {variant}
```"""
ON_HUB = """The published weights are [{published}](https://huggingface.co/{published}) on the Hub:
`{model_class}.from_pretrained("{variant}")`, and in a training `--model_name_or_path {variant}`."""

TEXT = """
# {title}

RF-DETR {name} for {task}: a DINOv2 encoder with windowed attention, a decoder with deformable attention, no
anchors and no non-maximum suppression. {status}

| | |
|---|---|
| input | {resolution} × {resolution} pixels, a multiple of {divisor} |
| parameters | {parameters:.1f} M with the published {num_labels} class logits |
| encoder | {layers} blocks of width {width}, patches of {patch} pixels, {windows} × {windows} windows |
| decoder | {decoder_layers} layers of width {d_model}, {queries} queries |
| published weights | `{file}` of the official package, {license} |

## Published results

{results}

They are those of the paper and of the official package; rfdetr_hf does not claim to have reproduced them.

## Use

```python
from rfdetr_hf import RFDETRConfig, {model_class}

config = RFDETRConfig.from_variant("{variant}", id2label={{0: "cat", 1: "dog"}}, label2id={{"cat": 0, "dog": 1}})
model = {model_class}(config)  # random weights
```

{weights}

## Training data and limits

The published weights were trained on Objects365 with pseudo-labels, then on COCO, and have the biases of COCO. Small
objects suffer where the input is small; the resolution can be raised to any multiple of {divisor}.

## Licence and citation

{license}. RF-DETR is the work of Roboflow.

```bibtex
@misc{{rf-detr,
  title = {{{{RF-DETR}}: Neural Architecture Search for Real-Time Detection Transformers}},
  author = {{Robinson, Isaac and Robicheaux, Peter and Popov, Matvei and Ramanan, Deva and Peri, Neehar}},
  year = {{2025}},
  eprint = {{2511.09554}},
  archivePrefix = {{arXiv}},
}}
```
"""


def card(variant: str) -> str:
    """The card of a variant: metadata and text."""
    row: Variant = RFDETRConfig.variants()[variant]
    config, (task, tag, model_class, metric) = RFDETRConfig.from_variant(variant), TASKS[row.task]
    published, backbone = RESULTS.get(variant), config.backbone_config
    title = f"RF-DETR {variant}"
    data = ModelCardData(
        model_name=title,
        license=row.license.lower(),
        library_name="rfdetr_hf",
        pipeline_tag=tag,
        tags=[tag, "rf-detr", "rfdetr_hf", "vision"],
        eval_results=_eval_result(published, task, tag, metric),
    )
    outdated = variant.endswith(("deprecated", "seg-preview")) or variant == "base"
    text = TEXT.format(
        title=title,
        name=variant,
        task=task,
        status="Superseded by the newer variants; kept for its checkpoints." if outdated else "",
        resolution=row.resolution,
        divisor=config.size_divisor,
        parameters=row.parameters / 1e6,
        num_labels=config.num_labels,
        layers=backbone.num_hidden_layers,
        width=backbone.hidden_size,
        patch=backbone.patch_size,
        windows=backbone.num_windows,
        decoder_layers=config.decoder_layers,
        d_model=config.d_model,
        queries=config.num_queries,
        file=official_file(variant),
        license=row.license,
        results=_results(published, metric),
        model_class=model_class,
        variant=variant,
        weights=(CONVERTED if published_id(variant) is None else ON_HUB).format(
            file=official_file(variant), folder=f"rf-detr-{variant}", variant=variant, model_class=model_class,
            published=published_id(variant),
        ),
    )  # fmt: skip
    return f"---\n{data.to_yaml()}\n---\n" + text.replace("suppression. \n", "suppression.\n")


def _eval_result(published: Published | None, task: str, tag: str, metric: str) -> list[EvalResult] | None:
    """The COCO result, where paper and package agree."""
    if published is None or len(published.coco) != 1:
        return None
    result = EvalResult(
        task_type=tag,
        task_name=task,
        dataset_type="coco",
        dataset_name="COCO",
        dataset_split="val2017",
        metric_type="map",
        metric_name=metric,
        metric_value=published.coco[0],
        source_name="RF-DETR: paper and official package",
        source_url=PAPER,
    )
    return [result]


def _results(published: Published | None, metric: str) -> str:
    if published is None:
        return "None in the tables of the paper and of the official package."
    rows = [(f"COCO val2017, {metric}", _either(published.coco))]
    rows += [("RF100-VL, mean AP", _either(published.rf100))] if published.rf100 else []
    rows += [("latency, T4, TensorRT float16", f"{published.latency} ms")] if published.latency else []
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _either(values: tuple[float, ...]) -> str:
    return " or ".join(str(value) for value in values) + (" (paper and package differ)" if len(values) > 1 else "")


def main() -> None:
    """Write all cards beside this file."""
    for variant in RFDETRConfig.variants():
        (Path(__file__).parent / f"rf-detr-{variant}.md").write_text(card(variant), encoding="utf-8")


if __name__ == "__main__":
    main()
