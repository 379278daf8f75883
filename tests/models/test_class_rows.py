"""Ids and names of classes, and which class rows a model keeps when it is loaded for other classes."""

import json
import logging

import pytest
import torch
import transformers

from rfdetr_hf import RFDETRConfig, RFDETRForKeypointDetection, RFDETRForObjectDetection, load_class_rows

NAMES = ["ant", "bee", "traffic light"]


@pytest.fixture
def saved(deep_config, tmp_path):
    """A model with random weights for `NAMES`, and its folder."""
    torch.manual_seed(0)
    model = RFDETRForObjectDetection(deep_config(id2label=dict(enumerate(NAMES)), num_labels=3)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape) * 0.1
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


def rows_of(loaded, model) -> list[int | None]:
    """For each class of `loaded` the row of `model` that it has in all class heads; None for a new row."""
    found = []
    for head in (lambda m: m.class_embed, *(lambda m, g=g: m.transformer.enc_out_class_embed[g] for g in range(3))):
        old, new = head(model), head(loaded)
        same = (new.weight[:, None] == old.weight).all(-1) & (new.bias[:, None] == old.bias)
        found.append([int(row.nonzero()[0]) if row.any() else None for row in same])
    assert all(rows == found[0] for rows in found)
    return found[0]


@pytest.mark.parametrize(
    ("names", "rows", "line"),
    [
        (["ant", "bee", "traffic light", "bird"], [0, 1, 2, None], "kept 3, new 1 (bird)"),
        (["ant", "bird", "bee"], [0, None, 1], "kept 2, new 1 (bird)"),
        (["bee", "ant", "traffic light"], [1, 0, 2], "kept 3, new 0"),
        (["traffic light", "bee"], [2, 1], "kept 2, new 0"),
        (["Ant", "BEE", "TrafficLight"], [0, 1, 2], "rows without a class left out"),
        ([" ant ", "traffic  LIGHT"], [0, 2], "kept 2, new 0"),
        (["ants", "wasp"], [None, None], "rows new, prior bias"),
        # "Bee" is not "bee" where "bee" is asked for as well.
        (["Bee", "bee"], [None, 1], "kept 1, new 1 (Bee)"),
        (list("pqrstuv") + ["bee"], [None] * 7 + [1], "kept 1, new 7 (p, q, r, s, t, ...)"),
    ],
)
def test_rows_are_kept_by_name(saved, caplog, names, rows, line):
    model, folder = saved
    with caplog.at_level(logging.INFO, logger="rfdetr_hf"):
        loaded = RFDETRForObjectDetection.from_pretrained(folder, id2label=dict(enumerate(names)))
    assert rows_of(loaded, model) == rows
    assert loaded.config.id2label == dict(enumerate(names))
    assert line in caplog.text or names[0] == "Ant"


@pytest.mark.parametrize("named_first", [True, False])
def test_default_names_are_no_classes(deep_config, tmp_path, caplog, named_first):
    """As many rows stay where they are, whichever side has names; nothing else is known by LABEL_1."""
    caplog.set_level(logging.INFO, logger="rfdetr_hf")
    names, default = dict(enumerate(NAMES)), {i: f"LABEL_{i}" for i in range(3)}
    first, second = (names, default) if named_first else (default, names)
    model = RFDETRForObjectDetection(deep_config(id2label=first, num_labels=3))
    with torch.no_grad():
        model.class_embed.weight.normal_()
    model.save_pretrained(tmp_path)
    loaded = RFDETRForObjectDetection.from_pretrained(tmp_path, config=deep_config(id2label=second, num_labels=3))
    assert torch.equal(loaded.class_embed.weight, model.class_embed.weight) and loaded.config.id2label == second
    assert "all kept, by position" in caplog.text
    fewer = RFDETRForObjectDetection.from_pretrained(tmp_path, id2label={0: "LABEL_2", 1: "LABEL_1"})
    assert not (fewer.class_embed.weight[:, None] == model.class_embed.weight).all(-1).any()
    assert load_class_rows(fewer, tmp_path) == []


def test_class_rows_are_copied_as_they_are_loaded(saved):
    model, folder = saved
    other = RFDETRForObjectDetection.from_pretrained(folder, id2label={0: "TrafficLight", 1: "N/A", 2: " ant"})
    other.class_embed.weight.data.normal_()
    assert load_class_rows(other, folder) == ["TrafficLight", " ant"]
    assert torch.equal(other.class_embed.weight[[0, 2]], model.class_embed.weight[[2, 0]])
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "id2label": {"0": "ant"}, "label2id": {"ant": 0}}))
    with pytest.raises(ValueError, match=rf"{folder}: class_embed.* is .3.*, but the file names 1 classes"):
        load_class_rows(other, folder)


def test_an_argument_that_is_none_names_what_is_near(saved):
    with pytest.raises(
        TypeError, match=f"from_pretrained of {saved[1]} has no argument 'num_lables'; did you mean num_labels"
    ):
        RFDETRForObjectDetection.from_pretrained(saved[1], num_lables=3)


def test_names_that_differ_in_case_are_told(caplog):
    transformers.utils.logging.warning_once.cache_clear()
    config = RFDETRConfig.from_variant("nano", id2label={0: "Bus", 1: "bus"})
    assert config.id2label == {0: "Bus", 1: "bus"} and "['Bus', 'bus'], which differ in case" in caplog.text


def test_new_rows_have_the_prior_bias(saved):
    loaded = RFDETRForObjectDetection.from_pretrained(saved[1], id2label={0: "bird", 1: "bee"})
    assert loaded.class_embed.bias[0].item() == pytest.approx(-4.59512, abs=1e-4)


def test_names_that_are_alike_in_the_file_are_not_guessed(deep_config, tmp_path):
    names = {0: "Bus", 1: "bus"}
    RFDETRForObjectDetection(deep_config(id2label=names, num_labels=2)).save_pretrained(tmp_path)
    model = RFDETRForObjectDetection.from_pretrained(tmp_path)
    with torch.no_grad():
        model.class_embed.weight.normal_()
        model.save_pretrained(tmp_path)
    loaded = RFDETRForObjectDetection.from_pretrained(tmp_path, id2label={0: "BUS"})
    assert not (loaded.class_embed.weight[0] == model.class_embed.weight).all(-1).any()


def test_all_rows_can_be_new(saved):
    model, folder = saved
    loaded = RFDETRForObjectDetection.from_pretrained(folder, class_init="new")
    assert rows_of(loaded, model) == [None] * 3 and loaded.config.id2label == dict(enumerate(NAMES))


def test_classes_are_renamed_before_they_are_compared(saved):
    model, folder = saved
    names = {"rename_classes": {"bee": "wasp"}}
    assert RFDETRForObjectDetection.from_pretrained(folder, **names).config.id2label[1] == "wasp"
    loaded = RFDETRForObjectDetection.from_pretrained(folder, id2label={0: "wasp", 1: "ant"}, **names)
    assert rows_of(loaded, model) == [1, 0]
    with pytest.raises(ValueError, match=r"rename_classes names \['fox'\].*3 \(ant, bee"):
        RFDETRForObjectDetection.from_pretrained(folder, rename_classes={"fox": "wolf"})
    with pytest.raises(ValueError, match="twice"):
        RFDETRForObjectDetection.from_pretrained(folder, rename_classes={"bee": "ant"})


def test_official_files_keep_rows_by_name(saved, tmp_path):
    model, _ = saved
    model.save_official(tmp_path / "model.pth")
    loaded = RFDETRForObjectDetection.from_official(tmp_path / "model.pth", id2label={0: "bee", 1: "cow"})
    assert rows_of(loaded, model) == [1, None]


def test_keypoints_go_with_their_class(deep_config, tmp_path):
    names, schema = {0: "cat", 1: "nest", 2: "bird"}, [2, 0, 3]
    model = RFDETRForKeypointDetection(deep_config(id2label=names, num_labels=3, num_keypoints_per_class=schema))
    model.save_pretrained(tmp_path)
    options = {"id2label": {0: "bird", 1: "cat"}, "num_keypoints_per_class": [3, 2]}
    loaded = RFDETRForKeypointDetection.from_pretrained(tmp_path, **options)
    table, found = (m.transformer.decoder.keypoint_pos_embed for m in (model, loaded))
    assert torch.equal(found, table[[2, 3, 4, 0, 1]])
    queries, found = (m.transformer.keypoint_query_initializer.queries for m in (model, loaded))
    assert torch.equal(found, queries[[2, 3, 4, 0, 1]])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id2label": {1: "a", 2: "b"}}, "ids 1, 2: they must be 0 to 1.*row i of the class head is class i"),
        ({"id2label": {0: "a", 2: "b"}}, "ids 0, 2"),
        ({"id2label": {"x": "a"}}, "ids x"),
        ({"id2label": {0: "a", 1: "a"}}, r"names \['a'\] twice"),
        ({"id2label": ["a", "b"]}, r"must be a dict of ids and names, got \['a', 'b'\]"),
        ({"id2label": {0: "a"}, "label2id": {"b": 0}}, r"different ids for \['b'\]"),
        ({"id2label": {0: "a"}, "num_labels": 5}, "num_labels is 5, but id2label has 1"),
        ({"label2id": {"a": 1, "b": 2}}, "ids 1, 2"),
        ({"id2label": {0: None}}, "id2label has None for the id 0: each class needs a name"),
        ({"id2label": {0: "a", 1: ""}}, "id2label has '' for the id 1"),
        ({"id2label": {0: " ", 1: "a"}}, "id2label has ' ' for the id 0"),
        ({"id2label": {0: False, 1: True}}, "id2label has False for the id 0.*in quotes"),
        ({"id2label": {0: "a ", 1: "a"}}, r"names \['a ', 'a'\], which differ in blanks alone"),
    ],
)
@pytest.mark.parametrize("how", ["variant", "load"])
def test_ids_with_gaps_and_names_twice_are_refused(saved, how, fields, message):
    with pytest.raises(ValueError, match=message):
        if how == "variant":
            RFDETRConfig.from_variant("nano", **fields)
        else:
            RFDETRForObjectDetection.from_pretrained(saved[1], **fields)


@pytest.mark.parametrize("names", [["", "a"], ["a", " "], ["a", "a "]])
def test_blank_names_of_a_file_are_read(saved, tmp_path, names):
    folder = tmp_path / "earlier"
    saved[0].save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    rest = {str(i): content["id2label"][str(i)] for i in range(2, len(content["id2label"]))}
    content["id2label"] = dict(enumerate(names)) | rest
    content["label2id"] = {name: int(i) for i, name in content["id2label"].items()}
    (folder / "config.json").write_text(json.dumps(content))
    model = RFDETRForObjectDetection.from_pretrained(folder)
    assert [model.config.id2label[i] for i in range(2)] == names
    model.save_pretrained(tmp_path / "again")
    assert RFDETRConfig.from_pretrained(tmp_path / "again").id2label == model.config.id2label


def test_ids_are_read_as_numbers_and_label2id_suffices():
    config = RFDETRConfig.from_variant("nano", id2label={"1": "b", "0": "a"}, label2id={"a": "0", "b": "1"})
    assert config.id2label == {0: "a", 1: "b"} and config.label2id == {"a": 0, "b": 1}
    assert RFDETRConfig.from_variant("nano", label2id={"b": 1, "a": 0}).id2label == {0: "a", 1: "b"}
    unused = {0: "N/A", 1: "a", 2: "N/A"}
    assert RFDETRConfig.from_variant("nano", id2label=unused).id2label == unused


def test_an_id_that_was_changed_after_construction_is_found_by_the_model(deep_config):
    config = deep_config()
    config.id2label = {1: "a", 2: "b"}
    with pytest.raises(ValueError, match="ids 1, 2"):
        RFDETRForObjectDetection(config)
