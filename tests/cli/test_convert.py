"""`rfdetr-hf convert` in all directions."""

import pytest
import torch
from safetensors.torch import load_file

from rfdetr_hf import RFDETRForObjectDetection, RFDETRImageProcessor
from rfdetr_hf.cli.convert import convert
from rfdetr_hf.cli.main import main


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A saved model without an image processor."""
    tiny_model().save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def test_folder_to_official_file_and_back(folder, tmp_path):
    convert(folder, tmp_path / "model.pth")
    convert(tmp_path / "model.pth", tmp_path / "back")
    found, wanted = (load_file(side / "model.safetensors") for side in (tmp_path / "back", folder))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    model = RFDETRForObjectDetection.from_pretrained(tmp_path / "back")
    assert model.config.id2label == {0: "circle", 1: "square", 2: "triangle"}


def test_converted_folder_has_an_image_processor(folder, tmp_path):
    convert(folder, tmp_path / "standard")
    assert dict(RFDETRImageProcessor.from_pretrained(tmp_path / "standard").size) == {"height": 64, "width": 64}
    RFDETRImageProcessor(size={"height": 64, "width": 64}, image_mean=[0.1, 0.2, 0.3]).save_pretrained(folder)
    convert(folder, tmp_path / "copied")
    assert RFDETRImageProcessor.from_pretrained(tmp_path / "copied").image_mean == (0.1, 0.2, 0.3)


def test_folder_of_plain_transformers_becomes_official(tmp_path):
    plain = pytest.importorskip("transformers.models.rf_detr.modeling_rf_detr")
    encoder = {
        "model_type": "rf_detr_dinov2", "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2,
        "out_indices": [1, 2], "patch_size": 16, "image_size": 64, "num_windows": 2,
    }  # fmt: skip
    sizes = {"d_model": 32, "decoder_self_attention_heads": 4, "decoder_cross_attention_heads": 4, "num_queries": 5}
    config = plain.RfDetrConfig(**sizes, group_detr=2, intermediate_size=128, num_labels=3, backbone_config=encoder)
    theirs = plain.RfDetrForInstanceSegmentation(config)
    theirs.save_pretrained(tmp_path / "plain", save_original_format=False)
    convert(tmp_path / "plain", tmp_path / "model.pth")
    state = torch.load(tmp_path / "model.pth", weights_only=False)["model"]
    assert torch.equal(state["class_embed.weight"][:3], theirs.model.class_embed.weight)
    assert "segmentation_head.blocks.0.dwconv.weight" in state


def test_nothing_is_overwritten(folder, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="there exists"):
        convert(folder, tmp_path / "there")


@pytest.mark.parametrize("options", [{"variant": "nano"}, {"use_ema": True}, {"drop_unused_rows": True}])
def test_options_of_official_files_alone(folder, tmp_path, options):
    with pytest.raises(ValueError, match="are for official files"):
        convert(folder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_revision_is_no_option_of_official_files(folder, tmp_path):
    convert(folder, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="revision is for Hub ids, not for the file"):
        convert(tmp_path / "model.pth", tmp_path / "out", revision="main")
    with pytest.raises(ValueError, match="holds its configuration: leave out variant='foo'"):
        convert(tmp_path / "model.pth", tmp_path / "out", variant="foo")
    assert not (tmp_path / "out").exists()


def test_official_file_in_capitals(folder, tmp_path):
    convert(folder, tmp_path / "model.PTH")
    assert (tmp_path / "model.PTH").is_file()
    assert convert(tmp_path / "model.PTH", tmp_path / "back.v2").config.num_labels == 3
    assert (tmp_path / "back.v2" / "config.json").is_file()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("model.safetensors", "name a folder, which gets model.safetensors"),
        ("model.onnx", "rfdetr-hf export"),
        ("model.CKPT", "as .pth or .pt"),
        ("model.bin", "give a folder, or a .pth"),
    ],
)
def test_files_that_are_not_written(folder, tmp_path, name, remedy):
    with pytest.raises(ValueError, match=f"{name}: .* are not written here: .*{remedy}"):
        convert(folder, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_command_line(folder, tmp_path, capsys):
    assert main(["convert", str(folder), str(tmp_path / "model.pth")]) == 0
    assert "RFDETRForObjectDetection, 64 px, 3 class logits" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "model.pth"), str(tmp_path / "out"), "--use-ema"]) == 1
    assert "holds no EMA weights" in capsys.readouterr().err
