"""ONNX files."""

import json

import pytest
import torch
from helpers.exported import SMALL, build

from rfdetr_hf import RFDETRForInstanceSegmentation, RFDETRForKeypointDetection, RFDETRForObjectDetection, export_model

TASKS = {
    "pred_boxes": (RFDETRForObjectDetection, {}),
    "pred_masks": (RFDETRForInstanceSegmentation, {}),
    "pred_keypoints": (RFDETRForKeypointDetection, {"num_keypoints_per_class": [3, 0, 2]}),
}


@pytest.mark.parametrize("last_output", TASKS)
def test_onnx(last_output, tiny_config, tmp_path, caplog):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model_class, fields = TASKS[last_output]
    model = build(model_class, tiny_config(decoder_layers=1, backbone_config=SMALL, **fields))
    report = export_model(model, tmp_path / "model.onnx")
    assert all(value <= 1e-4 for value in report.differences.values())
    session = onnxruntime.InferenceSession(report.path)
    assert [i.shape for i in session.get_inputs()] == [["batch", 3, 64, 64]]
    names = [output.name for output in session.get_outputs()]
    assert names == list(report.differences) == list(dict.fromkeys(["logits", "pred_boxes", last_output]))
    labels = session.get_modelmeta().custom_metadata_map["id2label"]
    assert json.loads(labels) == {"0": "circle", "1": "square", "2": "triangle"}
    assert session.get_modelmeta().custom_metadata_map["task"] == model.task
    pixels = torch.randn(4, 3, 64, 64)
    found = session.run(["logits"], {"pixel_values": pixels.numpy()})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model.eval()(pixels).logits, atol=1e-4, rtol=0)
    assert b"site-packages" not in report.path.read_bytes()
    assert not [record for record in caplog.records if record.name.startswith(("onnx", "torch.onnx"))]
