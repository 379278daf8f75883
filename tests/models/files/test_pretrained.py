"""Adaptation on load, broken folders, and the start from DINOv2."""

import json

import pytest
import torch
import torch.nn.functional as F
from helpers.models import load_detector
from safetensors.torch import load_file, save_file

from rfdetr_hf import RFDETRConfig, RFDETRForObjectDetection, load_model
from rfdetr_hf.models.backbone import resize_position_table
from rfdetr_hf.models.files.layouts import POSITIONS, resample_patch_kernel


def test_nothing_is_changed_without_need(saved, table):
    model, folder = saved
    loaded = load_detector(folder, dropout=0.1)
    assert loaded.config.dropout == 0.1
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert loaded.name_or_path == loaded.config.name_or_path == str(folder)
    assert table() == []


# --- options of transformers


def test_configuration_object(saved, table):
    model, folder = saved
    config = RFDETRConfig.from_pretrained(folder)
    config.focal_alpha = 0.5
    assert load_detector(folder, config=config).config.focal_alpha == 0.5
    assert load_detector(folder, config=config, num_queries=3).config.num_queries == 3
    assert len(table()) == 1


def test_options_of_transformers_reach_it(saved):
    model, info = load_detector(saved[1], dtype=torch.bfloat16, output_loading_info=True)
    assert model.dtype == torch.bfloat16 and not info["missing_keys"]
    with pytest.raises(TypeError, match="resolutoin"):
        load_detector(saved[1], resolutoin=96)


def test_dtype_of_the_file_is_kept(saved):
    model, folder = saved
    model.double().save_pretrained(folder)
    assert load_detector(folder).dtype == torch.float64


def test_sharded_folder(saved, tmp_path):
    model, _ = saved
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    loaded = load_detector(tmp_path / "shards")
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_the_weights_that_were_saved_last_are_read(saved):
    model, folder = saved
    with torch.no_grad():
        model.query_feat.weight += 1
    model.save_pretrained(folder, max_shard_size="100KB")
    assert torch.equal(load_detector(folder).query_feat.weight, model.query_feat.weight)
    save_file(model.state_dict(), folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"holds model.safetensors and all shards of model.safetensors.index.json"):
        load_detector(folder)
    with torch.no_grad():
        model.query_feat.weight += 1
    model.save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert torch.equal(load_detector(folder).query_feat.weight, model.query_feat.weight)


@pytest.mark.parametrize(("size", "written"), [("5GB", "model.safetensors"), ("100KB", "model.safetensors.index.json")])
@pytest.mark.parametrize("names", [("encoder", "decoder"), ("model-a", "model-1-of-2"), ("x-00001-of-00002", "y")])
def test_shards_of_other_names_are_replaced(saved, size, written, names):
    model, folder = saved
    state = model.state_dict()
    index = {name: f"{names[n % 2]}.safetensors" for n, name in enumerate(state)}
    for file in set(index.values()):
        save_file({name: state[name] for name in state if index[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "model.safetensors").unlink()
    trained = load_detector(folder)
    with torch.no_grad():
        trained.query_feat.weight += 1
    trained.save_pretrained(folder, max_shard_size=size)
    assert torch.equal(load_detector(folder).query_feat.weight, trained.query_feat.weight)
    found = {path.name for path in folder.iterdir()}
    assert found & {"model.safetensors", "model.safetensors.index.json"} == {written}


def test_key_mapping(saved):
    model, folder = saved
    save_file({f"net.{name}": tensor for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    loaded = load_detector(folder, key_mapping={r"^net\.": ""})
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("options", [{"use_safetensors": False}, {"state_dict": {}}])
def test_options_that_name_other_weights_are_refused(saved, options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))}.*{saved[1]}"):
        load_detector(saved[1], **options)


# --- broken folders


def test_truncated_safetensors(saved):
    file = saved[1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="model.safetensors is no complete safetensors file"):
        load_detector(saved[1])


def test_folder_without_weights(saved):
    (saved[1] / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has neither model.safetensors nor"):
        load_detector(saved[1])


@pytest.mark.parametrize("field", ["model_type", "backbone_config"])
def test_configuration_without_a_field(saved, field):
    file = saved[1] / "config.json"
    fields = json.loads(file.read_text())
    del fields[field]
    file.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=f"config.json has no field '{field}'"):
        load_detector(saved[1])


def read_tensors(file):
    """Copies: what `load_file` gives may be mapped from the file, which the tests write anew."""
    return {name: tensor.clone() for name, tensor in load_file(file).items()}


def test_missing_and_foreign_tensors(saved):
    file = saved[1] / "model.safetensors"
    state = read_tensors(file)
    save_file({name: t for name, t in state.items() if name != "bbox_embed.layers.0.weight"}, file)
    with pytest.raises(ValueError, match="missing: bbox_embed.layers.0.weight"):
        load_detector(saved[1])
    save_file({**state, "mask_head.weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="not part of the model: mask_head.weight"):
        load_detector(saved[1])


@pytest.mark.parametrize(
    ("key", "task"), [("segmentation_head.bias", "segmentation"), ("keypoint_embed.x", "keypoints")]
)
def test_folder_of_another_task(saved, key, task):
    file = saved[1] / "model.safetensors"
    save_file({**read_tensors(file), key: torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=f"model for {task}, and RFDETRForObjectDetection is for detection"):
        load_detector(saved[1])


# --- start from DINOv2


@pytest.fixture(params=["dinov2", "dinov2_with_registers"])
def dinov2(request, tmp_path):
    """A small random DINOv2 with patches of 14 pixels and a 5 x 5 position table, and its folder."""
    import transformers

    torch.manual_seed(0)
    name = {"dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}[request.param]
    sizes = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "image_size": 70, "patch_size": 14}
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape) * 0.05
    model.save_pretrained(tmp_path)
    return request.param, model, tmp_path


def test_encoder_equals_the_dinov2_it_starts_from(deep_config, dinov2):
    kind, theirs, folder = dinov2
    sizes = {"image_size": 70, "patch_size": 14, "num_windows": 1, "out_indices": [2, 4]}
    model = RFDETRForObjectDetection(deep_config(resolution=70, backbone_config=sizes)).eval()
    model.init_backbone_from(folder)
    table = theirs.embeddings.position_embeddings
    assert torch.equal(model.state_dict()[POSITIONS], table)
    pixels = torch.randn(1, 3, 70, 70)
    if kind == "dinov2":  # Registers change the outputs of a model that has them.
        with torch.no_grad():
            wanted = theirs(pixels).last_hidden_state[:, 1:].transpose(1, 2).reshape(1, 48, 5, 5)
            torch.testing.assert_close(model.backbone[0].vit(pixels)[-1], wanted, atol=1e-5, rtol=1e-5)


def test_dinov2_is_resampled_to_the_encoder(deep_config, dinov2):
    _, theirs, folder = dinov2
    model = RFDETRForObjectDetection(deep_config(resolution=128))
    model.init_backbone_from(folder)
    table = theirs.embeddings.position_embeddings
    torch.testing.assert_close(model.state_dict()[POSITIONS][0, 1:], resize_position_table(table[0, 1:], 8, 8))
    assert not model.backbone[0].vit.embeddings.mask_token.requires_grad


def test_enlarged_patches_keep_their_tokens():
    kernel, patch = torch.randn(8, 3, 14, 14), torch.randn(1, 3, 14, 14)
    larger = F.interpolate(patch, size=(16, 16), mode="bicubic", align_corners=False, antialias=True)
    before, after = F.conv2d(patch, kernel), F.conv2d(larger, resample_patch_kernel(kernel, 16))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    assert resample_patch_kernel(kernel, 12).shape == (8, 3, 12, 12)


def test_dinov2_of_another_size(deep_config, dinov2):
    model = RFDETRForObjectDetection(deep_config(backbone_config={"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="Here: 3 blocks of width 48.*There: 4 blocks of width 48"):
        model.init_backbone_from(dinov2[2])


def test_the_tensors_of_one_file_are_no_work_for_a_progress_bar(tiny_model, tmp_path, capsys):
    tiny_model().save_pretrained(tmp_path)
    capsys.readouterr()
    RFDETRForObjectDetection.from_pretrained(tmp_path)
    assert "Loading weights" not in capsys.readouterr().err


@pytest.mark.parametrize("has_base", [True, False])
def test_an_adapter_in_the_folder_is_refused_by_name(saved, has_base):
    (saved[1] / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "my/base"}))
    if not has_base:
        (saved[1] / "model.safetensors").unlink()
    for load in (load_model, load_detector):
        with pytest.raises(ValueError, match="adapter of peft .adapter_config.json, of the model my/base.*merge_and"):
            load(saved[1])


def test_weights_that_are_no_plain_numbers_are_named_when_they_are_saved(tiny_model, tmp_path):
    class Packed(torch.Tensor):
        """As torchao's: numbers that not every function takes."""

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is torch.Tensor.isfinite:
                raise NotImplementedError("Packed dispatch: attempting to run unimplemented operator")
            return super().__torch_function__(func, types, args, kwargs)

    model = tiny_model()
    model.class_embed.weight = torch.nn.Parameter(model.class_embed.weight.detach().as_subclass(Packed))
    with pytest.raises(ValueError, match="the type Packed are not plain numbers.* save the model before"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_model_that_is_made_with_more_than_its_configuration_is_written(tiny_model, tmp_path):
    class Named(RFDETRForObjectDetection):
        def __init__(self, config, name):
            super().__init__(config)
            self.name = name

    model = Named(tiny_model().config, "of a user")
    model.save_pretrained(tmp_path / "named")
    loaded = RFDETRForObjectDetection.from_pretrained(tmp_path / "named")
    assert all(tensor.equal(loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="nan|NaN"):
        model.save_pretrained(tmp_path / "broken")
