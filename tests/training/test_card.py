"""The model card of a run."""

import re
import subprocess
import sys
from importlib.util import find_spec

from helpers.runs import quick_arguments
from huggingface_hub import ModelCard
from PIL import Image

from rfdetr_hf import RFDETRTrainer, RFDETRTrainingArguments, make_shapes_dataset

SHAPES = 8  # images of the fixture `shapes`


def test_the_card_of_a_run_and_its_code_run_as_written(tmp_path, tiny_model):
    shapes = make_shapes_dataset(8, image_size=64)
    args = RFDETRTrainingArguments(
        output_dir=str(tmp_path / "my-run"), num_train_epochs=2, per_device_train_batch_size=4, disable_tqdm=True,
        gradient_accumulation_steps=1, dataloader_num_workers=0, audit="off", multi_scale="off", logging_steps=1,
        save_strategy="no",
    )  # fmt: skip
    trainer = RFDETRTrainer(tiny_model(), args, shapes, shapes)
    trainer.train()
    for name in ("best", "last"):
        card = ModelCard((tmp_path / "my-run" / name / "README.md").read_text())
        assert card.data.to_dict()["model-index"][0]["name"] == "my-run"
        assert {r.metric_type for r in card.data.eval_results} >= {"map", "map_50", "mar_100"}
    trainer.save_model(tmp_path / "saved")
    text = ModelCard((tmp_path / "saved" / "README.md").read_text()).text
    assert f"{trainer.state.best_metric:.4f}" in text
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 2
    Image.new("RGB", (80, 60)).save(tmp_path / "image.jpg")
    if find_spec("torchvision") is None:
        blocks.pop()  # transformers' own image processor needs it
    for block, forbidden in zip(blocks, ((), ("rfdetr_hf",)), strict=False):
        code = block.replace("PATH_OR_ID", str(tmp_path / "saved")).replace("threshold=0.5", "threshold=0.0")
        code += f"\nimport sys\nassert not {set(forbidden)!r} & set(sys.modules)\n"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "circle" in done.stdout or "square" in done.stdout or "triangle" in done.stdout


SHORT = {"max_steps": 2, "gradient_accumulation_steps": 1, "eval_strategy": "no", "save_strategy": "no"}


def test_a_card_with_what_the_user_says(tmp_path, tiny_model, shapes):
    trainer = RFDETRTrainer(tiny_model(), quick_arguments(tmp_path, **SHORT), shapes)
    path = trainer.create_model_card(finetuned_from="someone/base", dataset=["a/b"], tags=["x"], license="mit")
    head = path.read_text().split("---")[1]
    assert path == tmp_path / "README.md" and "base_model: someone/base" in head and "license: mit" in head
    assert "- a/b" in head and "- x" in head and "- rf-detr" in head
    folder = tmp_path / "local"
    folder.mkdir()
    assert "base_model" not in trainer.create_model_card(finetuned_from=str(folder)).read_text().split("---")[1]
