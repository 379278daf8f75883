"""Files of the official package, in and out."""

import os
import pickle

import pytest
import torch
from helpers.official_files import converted_payload, legacy_payload, lightning_payload
from safetensors.torch import save_file

from rfdetr_hf import RFDETRConfig, RFDETRForInstanceSegmentation, RFDETRForKeypointDetection, RFDETRForObjectDetection
from rfdetr_hf.models.files.adapt import without_unused_rows
from rfdetr_hf.models.files.official import COCO_LABELS, official_labels, official_payload
from rfdetr_hf.models.files.pretrained import read_state

# The encoder has the official head width of 64 channels, which official files do not state.
ENCODER = {"hidden_size": 64, "num_attention_heads": 1}


@pytest.fixture
def make_model(deep_config):
    """A model with a weight of its own in every place; `seed` tells models apart."""

    def make(seed: int = 0, **overrides) -> RFDETRForObjectDetection:
        generator = torch.Generator().manual_seed(seed)
        model = RFDETRForObjectDetection(deep_config(backbone_config=ENCODER, **overrides)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        return model

    return make


def assert_equal_tensors(found: RFDETRForObjectDetection, wanted: RFDETRForObjectDetection) -> None:
    assert found.state_dict().keys() == wanted.state_dict().keys()
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def from_file(payload, path, **options) -> RFDETRForObjectDetection:
    torch.save(payload, path)
    return RFDETRForObjectDetection.from_official(path, variant="nano", **options)


# --- reading


def test_legacy_file_gives_the_model_and_its_settings(make_model, tmp_path):
    model = make_model()
    loaded = from_file(legacy_payload(model, ["a", "b", "c", "d"]), tmp_path / "model.pth")
    assert_equal_tensors(loaded, model)
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c", 3: "d", 4: "N/A"}
    for field in ("resolution", "num_queries", "group_detr", "decoder_layers", "decoder_n_points", "d_model"):
        assert getattr(loaded.config, field) == getattr(model.config, field), field
    for field in ("num_windows", "out_indices", "patch_size", "num_hidden_layers", "num_attention_heads", "image_size"):
        assert getattr(loaded.config.backbone_config, field) == getattr(model.config.backbone_config, field), field
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(pixels).logits, model(pixels).logits)


def test_dictionary_is_read_like_a_file(make_model):
    model = make_model()
    assert_equal_tensors(RFDETRForObjectDetection.from_official(legacy_payload(model), variant="nano"), model)


@pytest.mark.parametrize("use_ema", [False, True])
def test_lightning_file(make_model, tmp_path, use_ema):
    model, averaged = make_model(0), make_model(1)
    loaded = from_file(lightning_payload(model, averaged, ["x"]), tmp_path / "last.ckpt", use_ema=use_ema)
    assert_equal_tensors(loaded, averaged if use_ema else model)
    assert loaded.config.id2label[0] == "x"


@pytest.mark.parametrize("use_ema", [False, True])
def test_converted_legacy_file(make_model, tmp_path, use_ema):
    model, averaged = make_model(0), make_model(1)
    loaded = from_file(converted_payload(model, averaged), tmp_path / "last.ckpt", use_ema=use_ema)
    assert_equal_tensors(loaded, averaged if use_ema else model)


def test_legacy_averaged_weights(make_model, tmp_path):
    model, averaged = make_model(0), make_model(1)
    payload = {**legacy_payload(model), "ema_model": {f"module.{k}": v for k, v in averaged.state_dict().items()}}
    assert_equal_tensors(from_file(payload, tmp_path / "checkpoint.pth", use_ema=True), averaged)


def test_averaged_weights_that_are_not_there(make_model, tmp_path):
    with pytest.raises(ValueError, match="model.pth holds no EMA weights"):
        from_file(legacy_payload(make_model()), tmp_path / "model.pth", use_ema=True)


@pytest.mark.parametrize(("name", "windows"), [("nano", 2), ("base", 4), ("large-deprecated", 4)])
def test_variant_is_told_by_the_tensors(name, windows):
    """Published files of old versions say nothing about the model but its tensors."""
    config = RFDETRConfig.from_variant(name, group_detr=1)
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in RFDETRForObjectDetection(config).state_dict().items()}
    payload = {"model": {key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}}
    loaded = RFDETRForObjectDetection.from_official(payload).config
    assert loaded.backbone_config.to_dict() == config.backbone_config.to_dict()
    assert (loaded.resolution, loaded.backbone_config.num_windows) == (config.resolution, windows)
    assert (loaded.projector_scales, loaded.decoder_n_points) == (config.projector_scales, config.decoder_n_points)
    assert (loaded.id2label[1], loaded.id2label[12], loaded.id2label[90]) == ("person", "N/A", "toothbrush")


def test_variant_that_cannot_be_told(make_model):
    payload = {"model": make_model().state_dict()}
    with pytest.raises(ValueError, match=r"cannot tell which variant .* \(fitting: none\): give variant="):
        RFDETRForObjectDetection.from_official(payload)


def test_variants_that_differ_in_their_windows_are_not_guessed():
    """Patches of 12 pixels, four decoder layers and an unknown position table: one window or two?"""
    config = RFDETRConfig.from_variant("seg-nano", resolution=360, group_detr=1)
    with torch.device("meta"):
        state = RFDETRForInstanceSegmentation(config).state_dict()
    payload = {"model": {name: torch.zeros(1).expand(tensor.shape) for name, tensor in state.items()}}
    with pytest.raises(ValueError, match="fitting: seg-preview, seg-nano, seg-small"):
        RFDETRForInstanceSegmentation.from_official(payload)
    loaded = RFDETRForInstanceSegmentation.from_official({**payload, "args": {"num_windows": 1}}).config
    assert (loaded.resolution, loaded.backbone_config.num_windows) == (360, 1)
    assert (
        RFDETRForInstanceSegmentation.from_official(payload, variant="seg-small").config.backbone_config.num_windows
        == 2
    )


# --- classes


def test_labels_of_rows():
    assert official_labels(3, ["a", "b"]) == {0: "a", 1: "b", 2: "N/A"}
    assert official_labels(3) == {0: "LABEL_0", 1: "LABEL_1", 2: "N/A"}
    coco = official_labels(91)
    assert coco == official_labels(91, list(COCO_LABELS.values()))
    assert (coco[0], coco[1], coco[18], coco[90]) == ("N/A", "person", "dog", "toothbrush")
    assert sum(name != "N/A" for name in coco.values()) == 80


@pytest.mark.parametrize(
    ("names", "labels", "said"),
    [
        (["root", "a", "b", "c", "d"], ["root", "a", "b", "c", "d"], "0 root, 1 a, 2 b, 3 c, 4 d. If they are off"),
        (["a", "b", "c"], ["a", "b", "c", "N/A", "N/A"], "3 class names and 5 rows of the class head"),
        (["a", "b", "c", "d"], ["a", "b", "c", "d", "N/A"], None),
        ({1: "a", 2: "b", 3: "c", "4": "d"}, ["N/A", "a", "b", "c", "d"], None),
        (None, ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3", "N/A"], None),
    ],
)
def test_names_that_may_be_off_by_one_are_listed(make_model, caplog, names, labels, said):
    loaded = RFDETRForObjectDetection.from_official(legacy_payload(make_model(), names), variant="nano")
    assert list(loaded.config.id2label.values()) == labels
    assert (said or "") in caplog.text and bool(said) == ("If they are off by one" in caplog.text)


@pytest.mark.parametrize(
    ("names", "message"),
    [(list("abcdef"), "6 names for 5 rows"), ({5: "a"}, r"keys \[5\].*rows 0 to 4"), ({"a": 0}, r"keys \['a'\]")],
)
def test_names_without_rows_are_refused(make_model, names, message):
    with pytest.raises(ValueError, match=message):
        RFDETRForObjectDetection.from_official(legacy_payload(make_model(), names), variant="nano")


def test_unused_rows_can_be_dropped(make_model):
    model = make_model()
    payload = legacy_payload(model, ["a", "b", "c", "d"])
    loaded = RFDETRForObjectDetection.from_official(payload, variant="nano", drop_unused_rows=True)
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c", 3: "d"}
    assert torch.equal(loaded.class_embed.weight, model.class_embed.weight[:4])
    assert torch.equal(
        loaded.transformer.enc_out_class_embed[2].bias, model.transformer.enc_out_class_embed[2].bias[:4]
    )


def test_new_classes_on_load(make_model):
    payload = legacy_payload(make_model(), ["a", "b", "c", "d"])
    loaded = RFDETRForObjectDetection.from_official(payload, variant="nano", id2label={0: "cat", 1: "dog"})
    assert loaded.config.label2id == {"cat": 0, "dog": 1}
    torch.testing.assert_close(loaded.class_embed.bias, torch.full((2,), -4.59512), atol=1e-5, rtol=0)


def test_unknown_field(make_model):
    with pytest.raises(ValueError, match=r"unknown fields \['resolutoin'\]"):
        RFDETRForObjectDetection.from_official(legacy_payload(make_model()), variant="nano", resolutoin=96)


# --- classes of keypoint models

KEYPOINT_LABELS = [
    # rows, names in the file, schema, what each row is
    (2, ["person"], [0, 17], {0: "N/A", 1: "person"}),
    (2, None, [0, 17], {0: "N/A", 1: "person"}),
    (2, ["person"], [17], {0: "person", 1: "N/A"}),
    (2, None, [17], {0: "person", 1: "N/A"}),
    (3, ["hand", "face"], [0, 21, 5], {0: "N/A", 1: "hand", 2: "face"}),
    (3, ["dog", "person"], [0, 17], {0: "dog", 1: "person", 2: "N/A"}),
    (3, ["person"], [17, 4], {0: "person", 1: "LABEL_1", 2: "N/A"}),
    (3, None, [0, 3], {0: "N/A", 1: "LABEL_1", 2: "N/A"}),
    (3, None, [3], {0: "LABEL_0", 1: "LABEL_1", 2: "N/A"}),
]


@pytest.mark.parametrize(("rows", "names", "schema", "labels"), KEYPOINT_LABELS)
def test_labels_of_keypoint_rows(rows, names, schema, labels):
    assert official_labels(rows, names, schema) == labels


@pytest.mark.parametrize("names", [None, list(COCO_LABELS.values())])
def test_rows_of_unnamed_keypoint_models_with_the_head_of_coco(names):
    ids = official_labels(91, names, [0, 17])
    assert ids == official_labels(91)
    first = official_labels(91, names, [17])
    assert first[0] == "person" and first[1] == "LABEL_1" and first[90] == "N/A"


@pytest.fixture
def make_keypoint_model(deep_config):
    def make(schema, rows, **overrides) -> RFDETRForKeypointDetection:
        torch.manual_seed(0)
        config = deep_config(backbone_config=ENCODER, num_keypoints_per_class=schema, num_labels=rows, **overrides)
        model = RFDETRForKeypointDetection(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape) * 0.1)
        return model

    return make


def test_keypoints_go_with_their_rows(make_keypoint_model):
    model = make_keypoint_model([0, 3], 2)
    for head in (model.class_embed, *model.transformer.enc_out_class_embed):
        head.bias.data[0] = -100  # So that the background chooses no proposals.
    payload = legacy_payload(model, ["bird"])
    payload["model"]["_kp_active_mask"] = model._kp_active_mask
    whole = RFDETRForKeypointDetection.from_official(payload, variant="keypoint-preview").eval()
    short = RFDETRForKeypointDetection.from_official(payload, variant="keypoint-preview", drop_unused_rows=True).eval()
    assert whole.config.id2label == {0: "N/A", 1: "bird"} and short.config.id2label == {0: "bird"}
    assert short.config.num_keypoints_per_class == [3]
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        long, cut = whole(pixels), short(pixels)
    torch.testing.assert_close(cut.logits[..., 0], long.logits[..., 1])
    torch.testing.assert_close(cut.pred_keypoints, long.pred_keypoints[:, :, 3:])


def test_keypoints_of_a_dropped_row_are_dropped(make_keypoint_model):
    names = {0: "a", 1: "N/A", 2: "c"}
    classes = [{"names": [f"{k}{i}" for i in range(k)]} for k in (1, 2, 3)]
    model = make_keypoint_model([1, 2, 3], 3, id2label=names, keypoint_schema={"classes": classes})
    state = dict(model.state_dict())
    config = without_unused_rows(state, model.config)
    assert config.num_keypoints_per_class == [1, 3] and config.id2label == {0: "a", 1: "c"}
    assert config.keypoint_schema == {"classes": [classes[0], classes[2]]}
    table = model.transformer.decoder.keypoint_pos_embed
    assert torch.equal(state["transformer.decoder.keypoint_pos_embed"], table[[0, 3, 4, 5]])
    RFDETRForKeypointDetection(config).load_state_dict(state, strict=False)


@pytest.mark.parametrize(
    ("schema", "names", "written", "rows"),
    [
        ([0, 3], {0: "N/A", 1: "bird"}, ["bird"], 2),
        ([0, 3], {0: "nest", 1: "bird"}, ["bird"], 3),
        ([3], {0: "bird"}, ["bird"], 2),
        ([3, 0], {0: "bird", 1: "nest"}, ["bird", "nest"], 3),
    ],
)
def test_names_that_the_official_package_gets(make_keypoint_model, schema, names, written, rows):
    model = make_keypoint_model(schema, len(names), id2label=names)
    payload = official_payload(model.config, model.state_dict())
    assert payload["args"].class_names == written and payload["model"]["class_embed.bias"].shape[0] == rows
    assert RFDETRForKeypointDetection.from_official(payload).config.id2label == names


# --- writing


def test_round_trip_of_an_official_file_is_equal(make_model, tmp_path):
    model = make_model()
    payload = legacy_payload(model, ["a", "b", "c", "d"])
    RFDETRForObjectDetection.from_official(payload, variant="nano").save_official(tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=False)
    assert back["model"].keys() == payload["model"].keys()
    assert all(torch.equal(back["model"][name], tensor) for name, tensor in payload["model"].items())
    assert back["args"].class_names == ["a", "b", "c", "d"]
    assert back["args"].num_classes == back["model_config"]["num_classes"] == 4
    assert vars(payload["args"]).items() <= vars(back["args"]).items()


def test_round_trip_of_our_model_keeps_everything(make_model, tmp_path):
    names = {0: "cat", 1: "dog", 2: "owl"}
    model = make_model(id2label=names, num_labels=3, dropout=0.2, focal_alpha=0.5)
    model.save_official(tmp_path / "model.pth")
    loaded = RFDETRForObjectDetection.from_official(tmp_path / "model.pth")
    assert_equal_tensors(loaded, model)
    ignored = ("dtype", "architectures", "_name_or_path")
    wanted = {key: value for key, value in model.config.to_dict().items() if key not in ignored}
    assert {key: value for key, value in loaded.config.to_dict().items() if key not in ignored} == wanted


def test_added_row_is_never_selected(make_model, tmp_path):
    model = make_model(id2label={0: "cat", 1: "dog"}, num_labels=2)
    model.save_official(tmp_path / "model.pth")
    payload = torch.load(tmp_path / "model.pth", weights_only=False)
    assert payload["args"].class_names == ["cat", "dog"]
    payload.pop("rfdetr_hf")  # As the official package reads it.
    official = RFDETRForObjectDetection.from_official(payload, variant="nano")
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = model(pixels), official(pixels)
    torch.testing.assert_close(theirs.logits[..., :2], ours.logits)
    torch.testing.assert_close(theirs.pred_boxes, ours.pred_boxes)
    assert theirs.logits.shape[-1] == 3 and (theirs.logits[..., 2].sigmoid() == 0).all()


def test_coco_rows_are_written_as_they_are(make_model, tmp_path):
    model = make_model(id2label=official_labels(91), num_labels=91)
    model.save_official(tmp_path / "model.pth")
    payload = torch.load(tmp_path / "model.pth", weights_only=False)
    assert payload["model"]["class_embed.bias"].shape == (91,)
    assert payload["args"].num_classes == 90
    assert payload["args"].class_names == list(COCO_LABELS.values())


@pytest.mark.parametrize("name", ["nano", "small", "base", "large-deprecated"])
def test_official_class_of_a_variant(name):
    model = RFDETRForObjectDetection(RFDETRConfig.from_variant(name, group_detr=1, num_queries=5))
    payload = official_payload(model.config, model.state_dict())
    assert payload["model_name"].lower() == "rfdetr" + name.replace("-", "")
    wide = name == "large-deprecated"
    assert payload["model_config"]["encoder"] == f"dinov2_windowed_{'base' if wide else 'small'}"
    assert payload["model_config"]["projector_scale"] == (["P3", "P5"] if wide else ["P4"])


# --- files that are not loaded


class Malicious:
    """Unpickling it would create the file `path`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("place", ["model", "args", "callbacks"])
def test_malicious_pickle_does_not_run(make_model, tmp_path, place):
    payload = {**legacy_payload(make_model()), place: Malicious(tmp_path / "owned")}
    torch.save(payload, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"model.pth is not loaded.*mkdir"):
        RFDETRForObjectDetection.from_official(tmp_path / "model.pth")
    (tmp_path / "plain.pth").write_bytes(
        pickle.dumps(payload["callbacks"] if place == "callbacks" else Malicious("x"), protocol=2)
    )
    with pytest.raises(ValueError, match=r"plain.pth is not loaded"):
        RFDETRForObjectDetection.from_official(tmp_path / "plain.pth")
    assert not (tmp_path / "owned").exists()


def test_truncated_file(make_model, tmp_path):
    torch.save(legacy_payload(make_model()), tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="half.pth is no complete torch file"):
        RFDETRForObjectDetection.from_official(tmp_path / "half.pth")
    with pytest.raises(FileNotFoundError, match="no checkpoint file .*none.pth"):
        RFDETRForObjectDetection.from_official(tmp_path / "none.pth")


FOREIGN = {
    "empty": (b"", "is an empty file"),
    "text": (b"epoch,loss\n1,2\n", "is a text that starts with 'epoch,loss'"),
    "short text": (b"e", "is a text that starts with 'e'"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n", "is a pointer of Git LFS"),
    "html": (b"\n<!DOCTYPE html>\n<title>404</title>", "is a web page"),
    "xml": (b"<?xml version='1.0'?><Error/>", "is a web page"),
    "noise": (bytes(range(100, 256)), "is of an unknown kind"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_file_of_no_checkpoint(tmp_path, kind):
    content, message = FOREIGN[kind]
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(ValueError, match=f"model.pth {message}.*get the checkpoint itself"):
        RFDETRForObjectDetection.from_official(tmp_path / "model.pth")


def test_safetensors_called_pth(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="model.pth is a safetensors file, which from_pretrained reads"):
        RFDETRForObjectDetection.from_official(tmp_path / "model.pth")


@pytest.mark.parametrize("length", [1, 2, 3, 15, 40, 200, 1000])
def test_old_format_that_is_cut_off(make_model, tmp_path, length):
    torch.save(legacy_payload(make_model()), tmp_path / "whole.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:length])
    with pytest.raises(ValueError, match="cut.pth is no complete torch file"):
        RFDETRForObjectDetection.from_official(tmp_path / "cut.pth")


def test_variant_of_a_file_that_holds_its_configuration(make_model, tmp_path):
    make_model().save_official(tmp_path / "model.pth")
    with pytest.raises(ValueError, match="model.pth holds its configuration: leave out variant='foo'"):
        RFDETRForObjectDetection.from_official(tmp_path / "model.pth", variant="foo")


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"weights": {}}, "entries \\['weights'\\]: neither 'model'"),
        ({"state_dict": {"net.x": torch.zeros(1)}}, "names that start with 'model.'"),
        ({"model": {"layer.weight": torch.zeros(1)}}, "is no RF-DETR checkpoint"),
        ({"model": {"backbone.0.encoder.base_model.model.x": torch.zeros(1)}}, "written by a LoRA run"),
    ],
)
def test_file_of_another_kind(tmp_path, payload, message):
    torch.save(payload, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=message):
        RFDETRForObjectDetection.from_official(tmp_path / "other.pth")


def test_file_of_another_task(make_model):
    payload = legacy_payload(make_model())
    payload["model"]["segmentation_head.bias"] = torch.zeros(1)
    with pytest.raises(
        ValueError, match="for segmentation, and RFDETRForObjectDetection is for detection: use RFDETRF"
    ):
        RFDETRForObjectDetection.from_official(payload, variant="seg-nano")


def test_task_is_checked_before_anything_is_built(make_model, make_keypoint_model, tmp_path):
    make_model().save_pretrained(tmp_path / "boxes")
    make_model().save_official(tmp_path / "boxes.pth")
    make_keypoint_model([3], 1).save_pretrained(tmp_path / "points")
    make_keypoint_model([3], 1).save_official(tmp_path / "points.pth")
    for load, folder, file in (
        (RFDETRForKeypointDetection, "boxes", "boxes.pth"),
        (RFDETRForObjectDetection, "points", "points.pth"),
        (RFDETRForInstanceSegmentation, "points", "points.pth"),
    ):
        found = "detection" if folder == "boxes" else "keypoints"
        message = f"{{}} holds a model for {found}, and {load.__name__} is for {load.task}: use RFDETRFor"
        with pytest.raises(ValueError, match=message.format(folder)):
            load.from_pretrained(tmp_path / folder)
        with pytest.raises(ValueError, match=message.format(file)):
            load.from_official(tmp_path / file)


def test_file_where_a_folder_is_wanted(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model.safetensors is a file: give the folder"):
        read_state(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("entry", "value", "said"),
    [("args", "text", "args is a str"), ("hyper_parameters", [1], "hyper_parameters is a list"),
     ("model_config", 3, "model_config is a int"), ("rfdetr_hf", "x", "rfdetr_hf is a str"),
     ("rfdetr_hf", {"config": "x"}, "config is a str"), ("callbacks", "x", "callbacks is a str"),
     ("callbacks", {"m": {"average_model_state_dict": 5}}, "no EMA weights")],
)  # fmt: skip
def test_an_entry_of_another_type_is_named(make_model, tmp_path, entry, value, said):
    payload = legacy_payload(make_model(), ["a", "b", "c", "d"]) | {entry: value}
    with pytest.raises(ValueError, match=said) as caught:
        from_file(payload, tmp_path / "model.pth", use_ema=True)
    assert "model.pth" in str(caught.value)


@pytest.mark.parametrize("names", [7, b"abcd", torch.ones(4), ["a", None, "c", "d"], {0: None}])
def test_class_names_that_are_no_texts_are_named(make_model, tmp_path, names):
    payload = legacy_payload(make_model(), ["a", "b", "c", "d"])
    payload["args"].class_names = names
    with pytest.raises(ValueError, match=r"model\.pth: class_names="):
        from_file(payload, tmp_path / "model.pth")


@pytest.mark.parametrize(("name", "shape"), [("query_feat.weight", [150]), ("class_embed.bias", [])])
def test_tensors_of_other_dimensions_and_names_that_are_no_texts(make_model, tmp_path, name, shape):
    payload = legacy_payload(make_model(), ["a", "b", "c", "d"])
    payload["model"] = {5: torch.ones(1)} | payload["model"] | {name: torch.ones(shape)}
    with pytest.raises(ValueError, match=rf"{name} has the shape"):
        from_file(payload, tmp_path / "model.pth")
