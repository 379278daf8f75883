import json
import sys

import numpy as np
import pytest
import torch

from rfdetr_hf import RFDETRForKeypointDetection, RFDETRImageProcessor, export_model
from rfdetr_hf.export import exporter
from rfdetr_hf.export.exporter import METADATA_FILE, metadata_of
from rfdetr_hf.export.parity import ParityError
from rfdetr_hf.export.wrapper import FixedSizeDetector


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


def test_failed_check_leaves_no_file(detector, tmp_path, monkeypatch):
    def write(fixed, path, *_):
        path.write_bytes(b"file")
        return lambda pixels: [output + 1 for output in fixed(pixels)]

    monkeypatch.setattr(exporter, "_write", write)
    with pytest.raises(ParityError):
        export_model(detector, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_thresholds_of_classes_without_keypoints(tiny_config):
    """Their scores x come as x / (1 + x): a threshold of .5 would leave none of them."""
    model = RFDETRForKeypointDetection(tiny_config(num_keypoints_per_class=[3, 0, 2]))
    fixed, processor = FixedSizeDetector(model, (64, 64)), RFDETRImageProcessor()
    for given, expected in ((0.5, [0.5, 1 / 3, 0.5]), ({"circle": 0.2}, [0.2, 1 / 3, 0.5]), ([0.1, 0.2, 0.3],) * 2,
                            (torch.tensor([0.1, 0.2, 0.3]), [0.1, 0.2, 0.3]), ({1: 0.4}, [0.5, 0.4, 0.5])):  # fmt: skip
        assert metadata_of(fixed, processor, given)["thresholds"] == pytest.approx(expected)


def test_a_file_has_the_size_of_the_processor(detector, tmp_path, caplog):
    def stored(**fields):
        detector.save_pretrained(tmp_path / "model")
        RFDETRImageProcessor(size_divisor=16, **fields).save_pretrained(tmp_path / "model")
        return type(detector).from_pretrained(tmp_path / "model")

    report = export_model(stored(size={"height": 32, "width": 64}), tmp_path / "file", "torch")
    files = {METADATA_FILE: ""}
    torch.export.load(report.path, extra_files=files)
    assert report.size == tuple(json.loads(files[METADATA_FILE])["size"]) == (32, 64)
    assert "several sizes" not in caplog.text
    with pytest.raises(FileExistsError):
        export_model(stored(size={"shortest_edge": 32, "longest_edge": 64}), report.path, "torch")
    assert "'shortest_edge': 32" in caplog.text and "64 x 64" in caplog.text
