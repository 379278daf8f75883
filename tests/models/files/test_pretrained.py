"""Adaptation on load, broken folders, and the start from DINOv2."""

import json
import logging

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from rfdetr_hf import load_model
from rfdetr_hf.models.backbone import resize_position_table
from rfdetr_hf.models.configuration_rfdetr import RFDETRConfig
from rfdetr_hf.models.files.layouts import POSITIONS, resample_patch_kernel
from rfdetr_hf.models.modeling_rfdetr import RFDETRForObjectDetection

PRIOR = -4.59512


@pytest.fixture
def saved(deep_config, tmp_path):
    """A model with random weights (5 classes, 6 queries, 3 groups, 4 x 4 positions) and its folder."""
    torch.manual_seed(0)
    names = {0: "ant", 1: "bee", 2: "cat", 3: "dog", 4: "eel"}
    model = RFDETRForObjectDetection(deep_config(id2label=names)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape) * 0.1
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


@pytest.fixture
def table(caplog):
    """Lines of the table of adaptations of the last load; empty if nothing was adapted."""
    caplog.set_level(logging.INFO, logger="rfdetr_hf")
    return lambda: [line for record in caplog.records for line in record.getMessage().splitlines()[2:]]


def load(folder, **options) -> RFDETRForObjectDetection:
    return RFDETRForObjectDetection.from_pretrained(folder, **options)


def class_heads(model):
    return [model.class_embed, *model.transformer.enc_out_class_embed]


def test_nothing_is_changed_without_need(saved, table):
    model, folder = saved
    loaded = load(folder, dropout=0.1)
    assert loaded.config.dropout == 0.1
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert loaded.name_or_path == loaded.config.name_or_path == str(folder)
    assert table() == []


@pytest.mark.parametrize("names", [["fox", "gnu"], ["u", "v", "w", "x", "y"], list("abcdefgh")])
def test_new_classes_are_initialised_with_the_prior_bias(saved, table, names):
    model, folder = saved
    loaded = load(folder, id2label=dict(enumerate(names)))
    for head in class_heads(loaded):
        assert head.weight.shape == (len(names), 32)
        torch.testing.assert_close(head.bias, torch.full((len(names),), PRIOR), atol=1e-5, rtol=0)
        assert torch.equal(head.weight, loaded.class_embed.weight)
        assert 0.05 < head.weight.std() < 0.2
    assert loaded.config.label2id == {name: index for index, name in enumerate(names)}
    assert torch.equal(loaded.bbox_embed.layers[2].weight, model.bbox_embed.layers[2].weight)
    (line,) = table()
    assert line.split()[:2] == ["classes", "5"] and "prior bias" in line


def test_new_class_rows_depend_on_the_seed_alone(saved):
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(load(saved[1], num_labels=3).class_embed.weight)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("count", [2, 7, 12])
def test_class_rows_can_be_repeated_as_the_official_package_does(saved, count):
    model, folder = saved
    loaded = load(folder, num_labels=count, class_init="tile")
    rows = [row % 5 for row in range(count)]
    for found, wanted in zip(class_heads(loaded), class_heads(model), strict=True):
        assert torch.equal(found.weight, wanted.weight[rows]) and torch.equal(found.bias, wanted.bias[rows])


def test_names_for_an_unnamed_head_keep_its_rows(deep_config, tmp_path, table):
    model = RFDETRForObjectDetection(deep_config())
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, id2label=dict(enumerate("abcde")))
    assert torch.equal(loaded.class_embed.weight, model.class_embed.weight)
    assert loaded.config.id2label[4] == "e" and len(table()) == 1 and "all kept, by position" in table()[0]


def test_classes_of_an_official_file_keep_their_rows(deep_config, tmp_path, table):
    """The official head has a row more, which is no class: the same classes are not learned anew."""
    model = RFDETRForObjectDetection(deep_config(id2label={0: "N/A", 1: "ant", 2: "bee", 3: "N/A"}, num_labels=4))
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, id2label={0: "ant", 1: "bee"})
    for found, wanted in zip(class_heads(loaded), class_heads(model), strict=True):
        assert torch.equal(found.weight, wanted.weight[1:3]) and torch.equal(found.bias, wanted.bias[1:3])
    assert "rows without a class left out" in table()[0]


def test_unknown_class_init(saved):
    with pytest.raises(ValueError, match="class_init must be one of prior, tile, new, got 'random'"):
        load(saved[1], class_init="random")


def test_other_resolution_brings_a_resized_position_table(saved, table):
    model, folder = saved
    loaded = load(folder, resolution=96)
    found, wanted = loaded.state_dict()[POSITIONS], model.state_dict()[POSITIONS]
    assert torch.equal(found[:, 0], wanted[:, 0])
    torch.testing.assert_close(found[0, 1:], resize_position_table(wanted[0, 1:], 6, 6))
    assert (loaded.config.resolution, loaded.config.backbone_config.image_size) == (96, 96)
    assert table()[0].split()[:6] == ["position", "table", "4", "x", "4", "6"]
    pixels = torch.randn(1, 3, 96, 96)
    with torch.no_grad():  # The stored table is resized on the way as well: the same function twice.
        torch.testing.assert_close(loaded.eval()(pixels).logits, model(pixels).logits, atol=1e-4, rtol=0)


def test_table_that_never_fitted_the_resolution_stays(deep_config, tmp_path, table):
    model = RFDETRForObjectDetection(deep_config(backbone_config={"image_size": 48}))
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, resolution=96)
    assert loaded.config.backbone_config.image_size == 48 and table() == []
    assert load(tmp_path, resolution=96, backbone_config={"image_size": 96}).config.backbone_config.image_size == 96


def test_fewer_queries_are_the_first_of_each_group(saved, table):
    model, folder = saved
    loaded = load(folder, num_queries=4)
    for name in ("query_feat", "refpoint_embed"):
        found, wanted = getattr(loaded, name).weight, getattr(model, name).weight
        assert torch.equal(found.reshape(3, 4, -1), wanted.reshape(3, 6, -1)[:, :4])
    assert table()[0].split()[:6] == ["queries", "of", "a", "group", "6", "4"]
    with torch.no_grad():
        assert loaded.eval()(torch.randn(1, 3, 64, 64)).logits.shape == (1, 4, 5)


def test_fewer_groups_are_the_first(saved):
    model, folder = saved
    loaded = load(folder, group_detr=2)
    assert torch.equal(loaded.query_feat.weight, model.query_feat.weight[:12])
    assert len(loaded.transformer.enc_output) == 2
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(pixels).logits, model(pixels).logits)


def test_more_groups_have_heads_of_the_old_and_queries_of_their_own(saved):
    model, folder = saved
    loaded = load(folder, group_detr=7)
    assert torch.equal(loaded.query_feat.weight[:18], model.query_feat.weight)
    new = loaded.query_feat.weight[18:].reshape(4, 6, -1)
    assert len({tuple(group.flatten().tolist()) for group in new}) == 4
    assert (loaded.refpoint_embed.weight[18:] == 0).all()
    for group in range(7):
        for head in ("enc_output", "enc_output_norm", "enc_out_class_embed"):
            found, wanted = getattr(loaded.transformer, head)[group], getattr(model.transformer, head)[group % 3]
            assert torch.equal(found.weight, wanted.weight)


def test_adapted_model_trains(saved):
    model = load(saved[1], id2label={0: "a", 1: "b"}, resolution=96, num_queries=4, group_detr=2).train()
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}]
    model(torch.randn(1, 3, 96, 96), labels=labels).loss.backward()
    unused = model.unused_parameter_names()
    assert all((p.grad is not None) != (name in unused) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"backbone_config": {"patch_size": 8}}, "patch size 16 in the file, 8 here"),
        ({"backbone_config": {"hidden_size": 96}}, r"hidden_size\) 48 in the file, 96 here"),
        ({"d_model": 64, "intermediate_size": 256}, r"d_model\) 32 in the file, 64 here"),
        ({"decoder_layers": 3}, "decoder layers 2 in the file, 3 here"),
        ({"projector_scales": ["P3", "P5"]}, r"projector scales \['P4'\] in the file, \['P3', 'P5'\] here"),
        ({"decoder_n_points": 4}, "heads x levels x points 8 in the file, 16 here"),
        ({"num_queries": 8}, "18 query rows in 3 groups, and the configuration wants 8 queries"),
        ({"backbone_config": {"num_channels": 4}}, "channels 3 in the file, 4 here"),
    ],
)
def test_what_cannot_be_adapted_names_both_sides(saved, overrides, message):
    with pytest.raises(ValueError, match=message):
        load(saved[1], **overrides)


# --- options of transformers


def test_configuration_object(saved, table):
    model, folder = saved
    config = RFDETRConfig.from_pretrained(folder)
    config.focal_alpha = 0.5
    assert load(folder, config=config).config.focal_alpha == 0.5
    assert load(folder, config=config, num_queries=3).config.num_queries == 3
    assert len(table()) == 1


def test_options_of_transformers_reach_it(saved):
    model, info = load(saved[1], dtype=torch.bfloat16, output_loading_info=True)
    assert model.dtype == torch.bfloat16 and not info["missing_keys"]
    with pytest.raises(TypeError, match="resolutoin"):
        load(saved[1], resolutoin=96)


def test_dtype_of_the_file_is_kept(saved):
    model, folder = saved
    model.double().save_pretrained(folder)
    assert load(folder).dtype == torch.float64


def test_sharded_folder(saved, tmp_path):
    model, _ = saved
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    loaded = load(tmp_path / "shards")
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_the_weights_that_were_saved_last_are_read(saved):
    model, folder = saved
    with torch.no_grad():
        model.query_feat.weight += 1
    model.save_pretrained(folder, max_shard_size="100KB")
    assert torch.equal(load(folder).query_feat.weight, model.query_feat.weight)
    save_file(model.state_dict(), folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"holds model.safetensors and all shards of model.safetensors.index.json"):
        load(folder)
    with torch.no_grad():
        model.query_feat.weight += 1
    model.save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert torch.equal(load(folder).query_feat.weight, model.query_feat.weight)


@pytest.mark.parametrize("size", ["5GB", "100KB"])
def test_variant_of_the_files(saved, size):
    model, folder = saved
    plain = model.query_feat.weight.clone()
    with torch.no_grad():
        model.query_feat.weight += 1
    model.save_pretrained(folder, variant="ema", max_shard_size=size)
    assert torch.equal(load(folder, variant="ema").query_feat.weight, model.query_feat.weight)
    assert torch.equal(load(folder).query_feat.weight, plain)
    (folder / "model.safetensors").unlink()
    assert torch.equal(load_model(folder, variant="ema").query_feat.weight, model.query_feat.weight)
    with pytest.raises(FileNotFoundError, match=r"neither model.old.safetensors nor model.safetensors.index.old.json"):
        load(folder, variant="old")


def test_key_mapping(saved):
    model, folder = saved
    save_file({f"net.{name}": tensor for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    loaded = load(folder, key_mapping={r"^net\.": ""})
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("options", [{"use_safetensors": False}, {"state_dict": {}}])
def test_options_that_name_other_weights_are_refused(saved, options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))}.*{saved[1]}"):
        load(saved[1], **options)


def test_new_rows_are_reported(saved, caplog):
    _, info = load(saved[1], num_labels=7, output_loading_info=True)
    assert ("class_embed.bias", (5,), (7,)) in info["mismatched_keys"] and len(info["mismatched_keys"]) == 8
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    _, info = load(saved[1], id2label={0: "dog", 1: "ant"}, output_loading_info=True)
    assert not info["mismatched_keys"] and [r.levelname for r in caplog.records].count("WARNING") == 1


def test_what_could_not_be_read_again_is_not_written(saved, deep_config):
    model, folder = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    state, other = model.state_dict(), RFDETRForObjectDetection(deep_config(num_labels=7)).state_dict()
    for wrong, message in ((other, r"class_embed.* is \(7, 32\)"), (dict(list(state.items())[:9]), "missing: ")):
        with pytest.raises(ValueError, match=message):
            model.save_pretrained(folder, state_dict=wrong)
    for name, value in (("id2label", {0: "a", 1: "b"}), ("num_labels", 7)):
        setattr(model.config, name, value)
        with pytest.raises(ValueError, match=r"class_embed\S+ is \(5"):
            model.save_pretrained(folder)
    model.config.id2label = dict(enumerate("abcde"))
    model.config.id2label[0] = "z"
    with pytest.raises(ValueError, match="name different ids for \\['a'\\]"):
        model.save_pretrained(folder)
    with pytest.raises(NotADirectoryError):
        model.save_pretrained(folder / "config.json")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    model.config.id2label = dict(enumerate("abcde"))
    model.save_pretrained(folder)
    assert load(folder).config.label2id == {name: index for index, name in enumerate("abcde")}


# --- broken folders


def test_truncated_safetensors(saved):
    file = saved[1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="model.safetensors is no complete safetensors file"):
        load(saved[1])


def test_folder_without_weights(saved):
    (saved[1] / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has neither model.safetensors nor"):
        load(saved[1])


@pytest.mark.parametrize("field", ["model_type", "backbone_config"])
def test_configuration_without_a_field(saved, field):
    file = saved[1] / "config.json"
    fields = json.loads(file.read_text())
    del fields[field]
    file.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=f"config.json has no field '{field}'"):
        load(saved[1])


def read_tensors(file):
    """Copies: what `load_file` gives may be mapped from the file, which the tests write anew."""
    return {name: tensor.clone() for name, tensor in load_file(file).items()}


def test_missing_and_foreign_tensors(saved):
    file = saved[1] / "model.safetensors"
    state = read_tensors(file)
    save_file({name: t for name, t in state.items() if name != "bbox_embed.layers.0.weight"}, file)
    with pytest.raises(ValueError, match="missing: bbox_embed.layers.0.weight"):
        load(saved[1])
    save_file({**state, "mask_head.weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="not part of the model: mask_head.weight"):
        load(saved[1])


@pytest.mark.parametrize(
    ("key", "task"), [("segmentation_head.bias", "segmentation"), ("keypoint_embed.x", "keypoints")]
)
def test_folder_of_another_task(saved, key, task):
    file = saved[1] / "model.safetensors"
    save_file({**read_tensors(file), key: torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=f"model for {task}, and RFDETRForObjectDetection is for detection"):
        load(saved[1])


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
