"""Which model is meant, and the fields that are changed."""

import pytest

from rfdetr_hf import ModelArguments, make_shapes_dataset


def test_a_field_of_the_model_that_is_given_twice():
    names = {"0": "circle", "1": "square", "2": "triangle"}
    given = ModelArguments(config_overrides={"resolution": 64, "id2label": names}, resolution=64)
    data = make_shapes_dataset(1, image_size=64)
    assert given.config_fields(data)["id2label"] == {0: "circle", 1: "square", 2: "triangle"}
    with pytest.raises(ValueError, match="config_overrides gives another resolution than resolution"):
        ModelArguments(config_overrides={"resolution": 640}, resolution=64).config_fields()
    with pytest.raises(ValueError, match="config_overrides gives another id2label than the data"):
        ModelArguments(config_overrides={"id2label": {"0": "x"}}).config_fields(data)


def test_a_checkpoint_decides_what_is_read(tiny_config, tmp_path):
    from rfdetr_hf import RFDETRForInstanceSegmentation

    RFDETRForInstanceSegmentation(tiny_config()).save_pretrained(tmp_path / "model")
    assert ModelArguments(str(tmp_path / "model")).task == "segmentation"
    with pytest.raises(ValueError, match="variant='tiny' is not known; choose one of nano"):
        ModelArguments(variant="tiny")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_name_or_path": "m", "variant": "nano"}, "variant='nano' and model_name_or_path='m' exclude"),
        ({"model_name_or_path": "m", "from_scratch": True}, "model_name_or_path='m' is none; choose from nano"),
        (
            {"model_name_or_path": "m", "init_backbone_from": "d"},
            "init_backbone_from='d' has no effect with from_scratch=F",
        ),
        (
            {"model_name_or_path": "m.pth", "revision": "v1"},
            "revision='v1' has no effect with model_name_or_path='m.pth'",
        ),
        ({"revision": "v1", "from_scratch": True}, "revision='v1' has no effect with from_scratch"),
        ({"class_init": "tile", "from_scratch": True}, "class_init='tile' has no effect with from_scratch"),
        ({"rename_classes": {"a": "b"}, "class_init": "new"}, "has no effect with class_init='new'"),
        ({"model_name_or_path": ".", "revision": "v1"}, "revision='v1' has no effect with model_name_or_path='.'"),
    ],
)
def test_options_without_effect_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        ModelArguments(**options)
    assert ModelArguments().model_name_or_path == ModelArguments(variant="nano").variant == "nano"
    assert ModelArguments("m").variant is None
