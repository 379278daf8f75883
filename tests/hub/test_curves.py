"""The curves of a run on its card."""

from dataclasses import replace

from PIL import Image

from rfdetr_hf.hub.model_card import write_model_card


def test_curves_are_drawn_unless_the_run_draws_nothing(tmp_path, facts):
    write_model_card(tmp_path, replace(facts, training_arguments={"plots": False}))
    assert not (tmp_path / "curves.png").exists() and "curves.png" not in (tmp_path / "README.md").read_text()
    write_model_card(tmp_path, facts)
    assert "![Losses and AP](curves.png)" in (tmp_path / "README.md").read_text()
    assert Image.open(tmp_path / "curves.png").size == (968, 374)  # two panels: losses, scores
