"""Weights of another head, size or number of queries, made to fit on load."""

import pytest
import torch
from helpers.models import load_detector
from safetensors.torch import load_file
from torch import nn

from rfdetr_hf import RFDETRForObjectDetection
from rfdetr_hf.models.backbone import resize_position_table
from rfdetr_hf.models.files.layouts import POSITIONS

PRIOR = -4.59512


def class_heads(model):
    return [model.class_embed, *model.transformer.enc_out_class_embed]


@pytest.mark.parametrize("names", [["fox", "gnu"], ["u", "v", "w", "x", "y"], list("abcdefgh")])
def test_new_classes_are_initialised_with_the_prior_bias(saved, table, names):
    model, folder = saved
    loaded = load_detector(folder, id2label=dict(enumerate(names)))
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
        heads.append(load_detector(saved[1], num_labels=3).class_embed.weight)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("count", [2, 7, 12])
def test_class_rows_can_be_repeated_as_the_official_package_does(saved, count):
    model, folder = saved
    loaded = load_detector(folder, num_labels=count, class_init="tile")
    rows = [row % 5 for row in range(count)]
    for found, wanted in zip(class_heads(loaded), class_heads(model), strict=True):
        assert torch.equal(found.weight, wanted.weight[rows]) and torch.equal(found.bias, wanted.bias[rows])


def test_names_for_an_unnamed_head_keep_its_rows(deep_config, tmp_path, table):
    model = RFDETRForObjectDetection(deep_config())
    model.save_pretrained(tmp_path)
    loaded = load_detector(tmp_path, id2label=dict(enumerate("abcde")))
    assert torch.equal(loaded.class_embed.weight, model.class_embed.weight)
    assert loaded.config.id2label[4] == "e" and len(table()) == 1 and "all kept, by position" in table()[0]


def test_classes_of_an_official_file_keep_their_rows(deep_config, tmp_path, table):
    """The official head has a row more, which is no class: the same classes are not learned anew."""
    model = RFDETRForObjectDetection(deep_config(id2label={0: "N/A", 1: "ant", 2: "bee", 3: "N/A"}, num_labels=4))
    model.save_pretrained(tmp_path)
    loaded = load_detector(tmp_path, id2label={0: "ant", 1: "bee"})
    for found, wanted in zip(class_heads(loaded), class_heads(model), strict=True):
        assert torch.equal(found.weight, wanted.weight[1:3]) and torch.equal(found.bias, wanted.bias[1:3])
    assert "rows without a class left out" in table()[0]


def test_unknown_class_init(saved):
    with pytest.raises(ValueError, match="class_init must be one of prior, tile, new, got 'random'"):
        load_detector(saved[1], class_init="random")


def test_other_resolution_brings_a_resized_position_table(saved, table):
    model, folder = saved
    loaded = load_detector(folder, resolution=96)
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
    loaded = load_detector(tmp_path, resolution=96)
    assert loaded.config.backbone_config.image_size == 48 and table() == []
    assert (
        load_detector(tmp_path, resolution=96, backbone_config={"image_size": 96}).config.backbone_config.image_size
        == 96
    )


def test_fewer_queries_are_the_first_of_each_group(saved, table):
    model, folder = saved
    loaded = load_detector(folder, num_queries=4)
    for name in ("query_feat", "refpoint_embed"):
        found, wanted = getattr(loaded, name).weight, getattr(model, name).weight
        assert torch.equal(found.reshape(3, 4, -1), wanted.reshape(3, 6, -1)[:, :4])
    assert table()[0].split()[:6] == ["queries", "of", "a", "group", "6", "4"]
    with torch.no_grad():
        assert loaded.eval()(torch.randn(1, 3, 64, 64)).logits.shape == (1, 4, 5)


def test_fewer_groups_are_the_first(saved):
    model, folder = saved
    loaded = load_detector(folder, group_detr=2)
    assert torch.equal(loaded.query_feat.weight, model.query_feat.weight[:12])
    assert len(loaded.transformer.enc_output) == 2
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(pixels).logits, model(pixels).logits)


def test_more_groups_have_heads_of_the_old_and_queries_of_their_own(saved):
    model, folder = saved
    loaded = load_detector(folder, group_detr=7)
    assert torch.equal(loaded.query_feat.weight[:18], model.query_feat.weight)
    new = loaded.query_feat.weight[18:].reshape(4, 6, -1)
    assert len({tuple(group.flatten().tolist()) for group in new}) == 4
    assert (loaded.refpoint_embed.weight[18:] == 0).all()
    for group in range(7):
        for head in ("enc_output", "enc_output_norm", "enc_out_class_embed"):
            found, wanted = getattr(loaded.transformer, head)[group], getattr(model.transformer, head)[group % 3]
            assert torch.equal(found.weight, wanted.weight)


def test_adapted_model_trains(saved):
    model = load_detector(saved[1], id2label={0: "a", 1: "b"}, resolution=96, num_queries=4, group_detr=2).train()
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
        load_detector(saved[1], **overrides)


def test_new_rows_are_reported(saved, caplog):
    _, info = load_detector(saved[1], num_labels=7, output_loading_info=True)
    assert ("class_embed.bias", (5,), (7,)) in info["mismatched_keys"] and len(info["mismatched_keys"]) == 8
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    _, info = load_detector(saved[1], id2label={0: "dog", 1: "ant"}, output_loading_info=True)
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
    encoder = model.config.backbone_config
    for config, name in ((model.config, "num_queries"), (model.config, "decoder_layers"), (encoder, "num_windows")):
        value = getattr(config, name)
        setattr(config, name, 1)
        with pytest.raises(ValueError, match=rf"changed after the model was made \(\S*{name} {value} -> 1\)"):
            model.save_pretrained(folder)
        setattr(config, name, value)
    model.config.id2label[0] = "z"
    with pytest.raises(ValueError, match="name different ids for \\['a'\\]"):
        model.save_pretrained(folder)
    with pytest.raises(NotADirectoryError):
        model.save_pretrained(folder / "config.json")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    model.config.id2label = dict(enumerate("abcde"))
    model.save_pretrained(folder)
    assert load_detector(folder).config.label2id == {name: index for index, name in enumerate("abcde")}


def test_other_modules_than_those_of_the_configuration_are_not_written(saved):
    model, folder = saved
    width, before = model.config.d_model, (folder / "model.safetensors").read_bytes()
    for name, module, message in (
        ("class_embed", nn.Linear(width, 9), r"class_embed\.weight is \(9, \d+\), but the file names 5 classes"),
        ("query_feat", nn.Embedding(2 * len(model.query_feat.weight), width), "mismatch: query_feat.weight is"),
        ("transformer.decoder.layers", model.transformer.decoder.layers[:-1], "missing: transformer.decoder.layers.1"),
    ):
        parent, _, last = name.rpartition(".")
        own = model.get_submodule(name)
        setattr(model.get_submodule(parent), last, module)
        with pytest.raises(ValueError, match=message):
            model.save_pretrained(folder)
        setattr(model.get_submodule(parent), last, own)
    assert (folder / "model.safetensors").read_bytes() == before
    # Changed along with the configuration, it is a model like any other.
    del model.transformer.decoder.layers[-1]
    model.config.decoder_layers -= 1
    model.save_pretrained(folder)
    assert len(load_detector(folder).transformer.decoder.layers) == model.config.decoder_layers


@pytest.mark.parametrize("change", ["parametrised", "wrapped", "four channels", "one more"])
def test_a_model_with_exchanged_modules_is_written_with_a_warning(saved, tmp_path, caplog, change):
    model = saved[0]
    if change == "parametrised":
        nn.utils.parametrizations.weight_norm(model.bbox_embed.layers[0])
    elif change == "wrapped":
        model.bbox_embed.layers[0] = nn.Sequential(model.bbox_embed.layers[0])
    elif change == "one more":
        model.extra = nn.Linear(2, 2)
    else:
        patches = model.vit.embeddings.patch_embeddings
        patches.projection = nn.Conv2d(4, *patches.projection.weight.shape[:1], patches.projection.kernel_size)
    model.save_pretrained(tmp_path / "made")
    assert "from_pretrained reads no such file" in caplog.text
    written = load_file(tmp_path / "made" / "model.safetensors")
    assert {name: each.shape for name, each in written.items()} == {n: t.shape for n, t in model.state_dict().items()}
