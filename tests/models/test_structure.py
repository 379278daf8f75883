"""What a model was made with, and whether its configuration and modules still say so."""

import copy

import pytest
from helpers.models import tiny_config

from rfdetr_hf.models.structure import changes_of, replaced, require_own_config, structure_of

TENSORS = {"a.weight": (3, 4)}


def test_the_structure_is_that_of_the_configuration_and_of_its_encoder():
    config = tiny_config()
    made = structure_of(config)
    assert changes_of(made, structure_of(copy.deepcopy(config))) == []
    config.num_queries, config.backbone_config.num_windows, config.class_loss_coefficient = 8, 1, 9.0
    changes = ["num_queries 10 -> 8", "backbone_config.num_windows 2 -> 1"]
    assert changes_of(made, structure_of(config)) == changes, "weights of losses are no structure"


@pytest.mark.parametrize("field", ["decoder_self_attention_heads", "decoder_n_points", "layer_norm_eps"])
def test_what_shows_in_values_alone_is_never_changed(field):
    config = tiny_config()
    made = structure_of(config)
    setattr(config, field, 1)
    with pytest.raises(ValueError, match=f"^here: its configuration was changed after .*{field} .* -> 1"):
        require_own_config(made, config, TENSORS, TENSORS, "here")


def test_modules_may_change_with_their_fields_where_tensors_show_it():
    config = tiny_config()
    made = structure_of(config)
    require_own_config(made, config, TENSORS, {"a.weight": (5, 4)}, "here")  # no field was changed
    config.num_queries = 8
    require_own_config(made, config, TENSORS, TENSORS, "here")
    with pytest.raises(ValueError, match="num_queries 10 -> 8"):
        require_own_config(made, config, TENSORS, {"a.weight": (5, 4)}, "here")


def test_a_wrapped_module_has_other_tensors_in_the_place_of_its_own():
    assert replaced(["a.weight"], ["a.original.weight"]) and replaced([], ["b"])
    assert not replaced(["a.weight"], ["ab.weight"])
    assert not replaced(["a.weight", "b.weight"], ["a.scale"])
