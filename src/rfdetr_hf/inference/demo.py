"""The demo: a page on which a model looks at pictures and at a webcam."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..bit_depth import upright_rgb
from ..choices import counted, install_hint
from ..drawing import DrawingStyle, draw_detections
from ..models.thresholds import class_thresholds
from ..tasks import TASKS
from .detector import ImageDetector, above, load_detector

# A picture is looked at once, down to this score; what is shown of it is chosen afterwards.
LEAST_SCORE = 0.05
# How often the webcam's picture is looked at, and how long at most, in seconds.
_EVERY, _AT_MOST = 0.2, 300


def build_demo(
    name_or_path: str,
    device: str | None = None,
    threshold: float = 0.5,
    *,
    revision: str | None = None,
    title: str = "",
) -> Any:
    """The demo of a model as `gradio.Blocks`; `.launch()` serves it.

    Args:
        name_or_path: a model folder, Hub id or official file.
        device: default: cuda where there is one.
        threshold: where the slider stands at first.
        revision: branch, tag or commit of a Hub id.
        title: what stands above; default: the model's name.

    Raises:
        ImportError: gradio is not installed.
        ValueError, FileNotFoundError: the model cannot be loaded; see `load_detector`.
    """
    try:
        import gradio  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"the demo needs gradio ({error}); {install_hint('demo')}") from error
    gr: Any = gradio
    viewer = _Viewer(load_detector(name_or_path, device, LEAST_SCORE, revision=revision))
    with gr.Blocks(title=title or name_or_path, analytics_enabled=False) as demo:
        gr.Markdown(f"# {title or name_or_path}\n{viewer.about(name_or_path)}")
        with gr.Row():
            least = gr.Slider(LEAST_SCORE, 0.95, threshold, step=0.01, label="Confidence threshold", elem_id="least")
            drawn = gr.CheckboxGroup(viewer.parts, value=viewer.parts, label="Draw", elem_id="parts")
            names = sorted(set(viewer.id2label.values()))
            hidden = gr.Dropdown(names, value=[], multiselect=True, label="Classes to hide", elem_id="hidden")
        choices = [least, hidden, drawn]
        result: dict[str, Any] = {"type": "pil", "interactive": False, "label": "What the model finds"}
        with gr.Tab("Picture"):
            seen = gr.State()
            with gr.Row():
                given = gr.Image(
                    type="pil", sources=["upload", "webcam", "clipboard"], label="Picture", elem_id="given"
                )
                picture = gr.Image(format="png", elem_id="picture", **result)
            latency = gr.Markdown(elem_id="latency")
            columns = ["class", "score", "x1", "y1", "x2", "y2"]
            table = gr.Dataframe(headers=columns, interactive=False, label="Objects", elem_id="objects")
            outputs = [picture, latency, table]
            given.change(viewer.look, given, seen).then(viewer.show, [seen, *choices], outputs)
            for each in choices:
                each.change(viewer.show, [seen, *choices], outputs, show_progress="hidden")
        with gr.Tab("Webcam"):
            with gr.Row():
                camera = gr.Image(type="pil", sources=["webcam"], streaming=True, label="Webcam", elem_id="camera")
                live = gr.Image(format="jpeg", elem_id="live", **result)
            beat = gr.Markdown(elem_id="beat")
            often: dict[str, Any] = {"stream_every": _EVERY, "time_limit": _AT_MOST, "concurrency_limit": 1}
            inputs = [camera, *choices]
            camera.stream(viewer.look_and_show, inputs, [live, beat], show_progress="hidden", **often)
    return demo


class _Viewer:
    """A detector, and what of its detections is shown."""

    def __init__(self, detect: ImageDetector) -> None:
        self.detect, self.config = detect, detect.model.config
        self.id2label: dict[int, str] = dict(self.config.id2label or {})
        field = TASKS[detect.model.task].object_field
        self.parts = ["boxes"] if field is None else ["boxes", "masks" if field == "segmentation" else field]
        self.style = DrawingStyle(self.config.keypoint_schema)

    def look(self, picture: Image.Image | None) -> tuple[Image.Image, dict[str, Any], str] | None:
        """The upright picture, what is found on it, and how long that took; None without a picture."""
        if picture is None:
            return None
        picture = upright_rgb(picture, self.detect.value_range)
        began = time.perf_counter()
        (found,) = self.detect([picture])
        spent, device = (time.perf_counter() - began) * 1000, self.detect.model.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return picture, found, f"{spent:.0f} ms on {name}, {picture.width} × {picture.height} pixels"

    def show(
        self,
        seen: tuple[Image.Image, dict[str, Any], str] | None,
        least: float,
        hidden: Sequence[str],
        parts: Sequence[str],
    ) -> tuple[Image.Image | None, str, list[list[Any]]]:
        """The drawing, a line about it, and the rows of a table, of what is above a threshold and not hidden."""
        if seen is None:
            return None, "", []
        picture, found, took = seen
        thresholds = np.array(class_thresholds(least, self.config))
        thresholds[[label for label, name in self.id2label.items() if name in hidden]] = np.inf
        found = above(found, thresholds.tolist())
        columns = [found[name].tolist() for name in ("labels", "scores", "boxes")]
        rows = [
            [self.id2label[label], round(score, 3), *map(round, box)]
            for label, score, box in zip(*columns, strict=True)
        ]
        kept = {name: value for name, value in found.items() if name in ("scores", "labels", *parts)}
        # A box that is not finite is not drawn, and has no label.
        kept.setdefault("boxes", torch.full_like(found["boxes"], torch.nan))
        drawn = draw_detections(picture, kept, self.id2label, 0.0, self.style)
        return drawn, f"{took}, {counted(len(rows), 'object')}", rows

    def look_and_show(self, picture: Image.Image | None, *choices: Any) -> tuple[Image.Image | None, str]:
        """Both, for a picture that is seen once."""
        return self.show(self.look(picture), *choices)[:2]

    def about(self, name_or_path: str) -> str:
        """A sentence on the model, and where its card is."""
        side, card = self.config.resolution, Path(name_or_path) / "README.md"
        title, classes = TASKS[self.detect.model.task].title.capitalize(), counted(len(self.id2label), "class")
        text = f"{title}, {classes}, {side} × {side} pixels."
        if Path(name_or_path).exists():
            return f"{text} Model card: `{card}`" if card.is_file() else text
        return f"{text} [Model card](https://huggingface.co/{self.config._name_or_path})"
