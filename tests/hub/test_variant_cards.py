import re
from pathlib import Path

import pytest
import torch
from helpers.scripts import load_script
from huggingface_hub import ModelCard

import rfdetr_hf
from rfdetr_hf import RFDETRConfig

FOLDER = Path(__file__).parents[2] / "model_cards"


def test_every_variant_has_a_card_and_every_card_a_variant():
    assert {p.stem for p in FOLDER.glob("rf-detr-*.md")} == {f"rf-detr-{name}" for name in RFDETRConfig.variants()}


@pytest.mark.parametrize("variant", RFDETRConfig.variants())
def test_the_cards_are_what_the_generator_writes_and_valid(variant):
    text = (FOLDER / f"rf-detr-{variant}.md").read_text()
    assert text == load_script("model_cards/generate.py").card(variant), "run model_cards/generate.py"
    card = ModelCard(text)
    row = RFDETRConfig.variants()[variant]
    assert card.data.license == "apache-2.0"
    assert f"| input | {row.resolution} × {row.resolution} pixels" in card.text
    for result in card.data.eval_results or ():
        assert result.source_url.startswith("https://arxiv.org/")
        assert f"| {result.metric_value} |" in card.text


def test_the_code_of_a_card_runs():
    for variant in ("nano", "seg-nano", "keypoint-preview"):
        code = re.search(r"```python\n(.*?)```", (FOLDER / f"rf-detr-{variant}.md").read_text(), re.S)[1]
        names: dict = {}
        with torch.device("meta"):
            exec(code, names)
        assert isinstance(names["model"], getattr(rfdetr_hf, type(names["model"]).__name__))
        assert names["model"].config.num_labels == 2 or variant == "keypoint-preview"
