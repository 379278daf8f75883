"""`config.json` files that plain transformers wrote."""

import pytest

from rfdetr_hf.models.files.native_config import complete_plain_config

PLAIN = {"model_type": "rf_detr", "backbone_config": {"hidden_size": 48}, "dropout": 0.1, "intermediate_size": 2048}


def test_missing_fields_get_the_defaults_of_the_writer():
    found = complete_plain_config(PLAIN, "here")
    assert (found["decoder_layers"], found["decoder_n_points"], found["layer_norm_eps"]) == (3, 4, 1e-5)
    assert found["backbone_config"]["hidden_size"] == 48 and found["backbone_config"]["num_windows"] == 4
    assert complete_plain_config({**PLAIN, "decoder_layers": 2}, "here")["decoder_layers"] == 2
    assert "decoder_layers" not in PLAIN and PLAIN["backbone_config"] == {"hidden_size": 48}, "nothing is changed"


def test_dropout_is_that_of_training_and_the_width_that_of_masks():
    found = complete_plain_config(PLAIN, "here")
    assert found["dropout"] == 0.0 and "intermediate_size" not in found
    masks = complete_plain_config({**PLAIN, "architectures": ["RfDetrForInstanceSegmentation"]}, "here")
    assert masks["intermediate_size"] == 2048


def test_our_own_fields_stay_as_they_are():
    ours = {**PLAIN, "projector_scales": ["P4"]}
    assert complete_plain_config(ours, "here") == ours


@pytest.mark.parametrize("name", ["model_type", "backbone_config"])
@pytest.mark.parametrize("value", [None, "", {}, ...])
def test_what_describes_no_model_is_named(name, value):
    fields = {key: each for key, each in {**PLAIN, name: value}.items() if each is not ...}
    with pytest.raises(ValueError, match=f"^here: config.json has no field '{name}'"):
        complete_plain_config(fields, "here")
