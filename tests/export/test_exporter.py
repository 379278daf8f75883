import json
import sys

import numpy as np
import pytest
import torch

from rfdetr_hf import (
    RFDETRForInstanceSegmentation,
    RFDETRForKeypointDetection,
    RFDETRForObjectDetection,
    RFDETRImageProcessor,
    export_model,
)
from rfdetr_hf.cli import export as command
from rfdetr_hf.export import exporter
from rfdetr_hf.export.exporter import METADATA_FILE, metadata_of
from rfdetr_hf.export.parity import ParityError, check_differences, largest_differences
from rfdetr_hf.export.wrapper import FixedSizeDetector

# Two of three blocks in use, positions of another size.
SMALL = {"image_size": 40, "out_indices": [1, 2]}
TASKS = {
    "pred_boxes": (RFDETRForObjectDetection, {}),
    "pred_masks": (RFDETRForInstanceSegmentation, {}),
    "pred_keypoints": (RFDETRForKeypointDetection, {"num_keypoints_per_class": [3, 0, 2]}),
}


def build(model_class, config):
    """A model whose every parameter matters: fresh box heads are zero and would hide errors."""
    torch.manual_seed(0)
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture
def detector(tiny_config):
    return build(RFDETRForObjectDetection, tiny_config(decoder_layers=1, backbone_config=SMALL))


def test_fixed_size_detector_equals_the_model(detector):
    fixed = FixedSizeDetector(detector, (32, 64))
    pixels = fixed.example(2)
    with torch.no_grad():
        outputs = detector.eval()(pixels)
        logits, boxes = fixed(pixels)
    assert fixed.output_names == ["logits", "pred_boxes"]
    assert torch.equal(logits, outputs.logits) and torch.equal(boxes, outputs.pred_boxes)


def test_fixed_size_detector_leaves_out_what_training_needs_and_the_model_as_it_was(detector):
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    detector.train()
    fixed = FixedSizeDetector(detector, (64, 64))
    assert detector.training and detector.config.group_detr == 3 and next(detector.parameters()).requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())
    names = {name for name, _ in fixed.model.named_parameters()}
    assert {name.split(".")[2] for name in names if "enc_out" in name} == {"0"}
    assert not any("encoder.layer.2." in name for name in names)
    assert fixed.model.query_feat.weight.shape[0] == detector.config.num_queries


def test_sizes_that_do_not_fit(detector, tmp_path):
    with pytest.raises(ValueError, match="multiples of 16.*nearest is 64 x 96"):
        export_model(detector, tmp_path / "model", size=(60, 90))
    assert not list(tmp_path.iterdir())


def test_arguments_that_do_not_fit(detector, tmp_path):
    with pytest.raises(ValueError, match="onnx, torch"):
        export_model(detector, tmp_path / "model", "tflite")
    (tmp_path / "model.pt2").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="model.pt2"):
        export_model(detector, tmp_path / "model", "torch")
    assert (tmp_path / "model.pt2").read_bytes() == b"mine"
    with pytest.raises(ValueError, match="opset=16"):
        export_model(detector, tmp_path / "model", opset=16)


def test_missing_package_names_the_extra(detector, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[onnx\]'"):
        export_model(detector, tmp_path / "model")
    assert not list(tmp_path.iterdir())


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


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_metadata_says_how_to_use_the_file(format, detector, tmp_path):
    """A user of the file alone prepares pictures and reads outputs as the processor does."""
    onnxruntime = pytest.importorskip("onnxruntime")
    processor = RFDETRImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7])
    options = {"size": (64, 96), "processor": processor, "threshold": {"square": 0.3}}
    path = export_model(detector, tmp_path / "model", format, **options).path
    if format == "onnx":
        found = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
        found = {key: value if key in ("task", "resample") else json.loads(value) for key, value in found.items()}
    else:
        files = {METADATA_FILE: ""}
        torch.export.load(path, extra_files=files)
        found = json.loads(files[METADATA_FILE])
    assert found["task"] == "detection" and found["size"] == [64, 96]
    assert found["mean"] == [0.1, 0.2, 0.3] and found["std"] == [0.5, 0.6, 0.7]
    assert found["names"] == ["circle", "square", "triangle"]
    assert found["thresholds"] == pytest.approx([0.5, 0.3, 0.5]) and found["rescale_factor"] == pytest.approx(1 / 255)


COLOURS = {
    "standard": {},
    "not normalised": {"do_normalize": False},
    "not rescaled": {"do_rescale": False, "image_mean": [100.0, 110.0, 120.0], "image_std": [50.0, 60.0, 70.0]},
    "one number": {"image_mean": 0.5, "image_std": [0.25]},
    "bicubic": {"resample": 3, "antialias": True},
}


@pytest.mark.parametrize("fields", COLOURS.values(), ids=COLOURS)
def test_metadata_alone_make_the_pixels_of_the_processor(fields, detector, tmp_path):
    processor = RFDETRImageProcessor(size={"height": 64, "width": 64}, **fields)
    picture = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    picture[:4, :4], picture[-4:, -4:] = 0, 255
    found = metadata_of(FixedSizeDetector(detector, (64, 64)), processor, 0.5)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] * found["rescale_factor"]
    resize = {"mode": found["resample"], "antialias": found["antialias"], "align_corners": False}
    pixels = torch.nn.functional.interpolate(pixels.float(), found["size"], **resize)
    mean, std = (torch.tensor(found[name]).reshape(1, 3, 1, 1) for name in ("mean", "std"))
    expected = processor(picture).pixel_values
    torch.testing.assert_close((pixels - mean) / std, expected)
    if not found["antialias"]:  # which overshoots
        assert found["input_range"] == pytest.approx([float(expected.min()), float(expected.max())], rel=1e-4, abs=1e-4)


def test_metadata_without_a_processor_are_those_of_the_stored_one(detector, tmp_path, caplog):
    caplog.set_level("INFO", logger="rfdetr_hf")
    detector.save_pretrained(tmp_path)
    RFDETRImageProcessor(image_mean=[0.1, 0.2, 0.3], value_range=[0, 4095]).save_pretrained(tmp_path)
    for model, mean in ((detector, [0.485, 0.456, 0.406]), (type(detector).from_pretrained(tmp_path), [0.1, 0.2, 0.3])):
        found = metadata_of(FixedSizeDetector(model, (64, 64)), None, 0.5)
        assert found["mean"] == mean and found.get("value_range") == (None if model is detector else [0, 4095])
    assert "the standard one" in caplog.text and f"that of {tmp_path}" in caplog.text


def test_parity_sees_an_error(detector):
    fixed = FixedSizeDetector(detector, (64, 64))
    differences = largest_differences(fixed, lambda x: [y + 0.01 for y in fixed(x)], fixed)
    with pytest.raises(ParityError, match="logits by 0.00.*pred_boxes by 0.0"):
        check_differences(differences, 1e-4)
    with pytest.raises(ParityError, match="logits by nan"):
        check_differences({"logits": float("nan")}, 1e-4)
    with pytest.raises(ParityError, match="shape"):
        largest_differences(fixed, lambda x: [y[:, :-1] for y in fixed(x)], fixed)
    broken = largest_differences(fixed, lambda x: [y * float("nan") for y in fixed(x)], fixed)
    assert broken["logits"] == float("inf")


def test_differences_are_relative_to_large_outputs(detector):
    fixed = FixedSizeDetector(detector, (64, 64))

    def scaled(pixels):
        return [output * 1000 for output in fixed(pixels)]

    differences = largest_differences(scaled, lambda x: [y * (1 + 3e-5) for y in scaled(x)], fixed)
    assert differences == pytest.approx({"logits": 3e-5, "pred_boxes": 3e-5}, rel=0.02)


def test_parity_sees_an_error_in_batches_alone(detector):
    fixed = FixedSizeDetector(detector, (64, 64))
    differences = largest_differences(fixed, lambda x: [y + len(x) - 1 for y in fixed(x)], fixed)
    assert min(differences.values()) > 0.1


def test_parity_leaves_out_what_rounding_decides(detector):
    fixed, compared = FixedSizeDetector(detector, (64, 64)), []
    tied = fixed.example(1, seed=0)[0]

    def reference(pixels):
        """The order of the first image turns over as soon as a pixel changes."""
        logits, boxes = fixed(pixels)
        compared.append(len(pixels))
        turned = (pixels == tied).flatten(1).all(1)
        return torch.where(turned[:, None, None], logits.flip(1), logits), boxes

    assert not torch.allclose(reference(tied[None])[0], fixed(tied[None])[0], atol=0.1)
    compared.clear()
    assert max(largest_differences(reference, fixed, fixed).values()) <= 1e-4
    # The tied image, two looks at it, and images of which four count.
    assert compared == [1, 1, 1, 2, 1, 2]
    with pytest.raises(ParityError, match="on 24 of 24 random images"):
        largest_differences(lambda x: [y + torch.rand(()) for y in fixed(x)], fixed, fixed)


def test_failed_check_leaves_no_file(detector, tmp_path, monkeypatch):
    def write(fixed, path, *_):
        path.write_bytes(b"file")
        return lambda pixels: [output + 1 for output in fixed(pixels)]

    monkeypatch.setattr(exporter, "_write", write)
    with pytest.raises(ParityError):
        export_model(detector, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_command_writes_a_torch_program(detector, tmp_path, capsys):
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
