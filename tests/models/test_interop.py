"""Plain transformers reads what this package writes, in a process that never imports it."""

import subprocess
import sys
import textwrap

import pytest
import torch

from rfdetr_hf import RFDETRForInstanceSegmentation, RFDETRForKeypointDetection, RFDETRForObjectDetection

PLAIN_READER = textwrap.dedent(
    """
    import sys

    import torch
    import transformers

    folder, auto_class = sys.argv[1:]
    load = getattr(transformers, auto_class).from_pretrained
    model, info = load(folder, output_loading_info=True)
    assert type(model).__module__.startswith("transformers."), type(model)
    found = {kind: sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    assert not any(found.values()), found
    expected = torch.load(folder + "/expected.pt", weights_only=True)
    with torch.no_grad():
        output = model.eval()(expected["pixel_values"])
    tolerance = 1e-6 if model.dtype == torch.float64 else 1e-4
    for name in expected.keys() - {"pixel_values"}:
        torch.testing.assert_close(output[name], expected[name], atol=tolerance, rtol=0)
    assert not any(name.startswith("rfdetr_hf") for name in sys.modules)
    """
)


def read_plainly(folder, auto_class="AutoModelForObjectDetection") -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", PLAIN_READER, str(folder), auto_class]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize(
    ("model_class", "auto_class", "dtype"),
    [
        (RFDETRForObjectDetection, "AutoModelForObjectDetection", torch.float32),
        (RFDETRForObjectDetection, "AutoModelForObjectDetection", torch.float64),
        (RFDETRForInstanceSegmentation, "AutoModelForInstanceSegmentation", torch.float64),
    ],
)
def test_plain_transformers_gives_equal_outputs(deep_config, rng, tmp_path, model_class, auto_class, dtype):
    """Here the two implementations agree: square, unpadded, fewer than 50 cells a side, more cells than queries."""
    torch.manual_seed(0)
    model = model_class(deep_config(resolution=128)).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=rng) * 0.05
    pixels = torch.randn(2, 3, 128, 128, generator=rng).to(dtype)
    with torch.no_grad():
        output = model(pixels)
    model.save_pretrained(tmp_path)
    names = [name for name in ("logits", "pred_boxes", "pred_masks") if name in output]
    torch.save({"pixel_values": pixels, **{name: output[name] for name in names}}, tmp_path / "expected.pt")
    result = read_plainly(tmp_path, auto_class)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize(
    ("model_class", "fields", "model_type"),
    [
        (RFDETRForObjectDetection, {"projector_scales": ["P3", "P5"]}, "rf_detr_multi_level"),
        (RFDETRForKeypointDetection, {"num_keypoints_per_class": [2]}, "rf_detr_keypoint"),
    ],
)
def test_plain_transformers_refuses_a_model_that_it_cannot_represent(
    deep_config, tmp_path, model_class, fields, model_type
):
    model_class(deep_config(**fields)).save_pretrained(tmp_path)
    result = read_plainly(tmp_path)
    assert result.returncode != 0
    assert model_type in result.stderr
