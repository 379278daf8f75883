"""`rfdetr-hf export`."""

import pytest
import torch
from helpers.exported import SMALL, build

from rfdetr_hf import RFDETRForObjectDetection
from rfdetr_hf.cli import export as command


def test_command_writes_a_torch_program(tiny_config, tmp_path, capsys):
    detector = build(RFDETRForObjectDetection, tiny_config(decoder_layers=1, backbone_config=SMALL))
    detector.save_pretrained(tmp_path / "model")
    report = command.main(
        ["--model_name_or_path", str(tmp_path / "model"), "--output", str(tmp_path / "small"), "--format", "torch"]
        + ["--size", "32", "48"]
    )
    assert report.size == (32, 48) and report.differences.keys() == {"logits", "pred_boxes"}
    assert "32 x 48 pixels; largest difference to the model: logits" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "small.pt2"]
    with open(report.path, "rb") as file:
        program = torch.export.load(file).module()
    pixels = torch.randn(5, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(program(pixels)[0], detector.eval()(pixels).logits, atol=1e-4, rtol=0)
    content = report.path.read_bytes()
    assert b"site-packages" not in content and b"modeling_rfdetr.py" not in content


def test_command_checks_the_size(tmp_path):
    with pytest.raises(ValueError, match="height and width"):
        command.main(["--model_name_or_path", str(tmp_path), "--size", "32", "48", "64"])
