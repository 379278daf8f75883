import re
from dataclasses import replace

import pytest
import torch
from datasets import DatasetInfo
from helpers.cards import HISTORY
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image

import rfdetr_hf
from rfdetr_hf import (
    TASKS,
    RFDETRForKeypointDetection,
    RFDETRImageProcessor,
    RFDETRTrainer,
    RFDETRTrainingArguments,
    make_shapes_dataset,
)
from rfdetr_hf.hub.model_card import CardFacts, hub_dataset_id, hub_model_id, write_model_card


def test_the_metadata_is_what_the_hub_reads(tmp_path, facts):
    write_model_card(tmp_path, facts)
    card = ModelCard((tmp_path / "README.md").read_text())
    data = card.data.to_dict()
    assert data["pipeline_tag"] == "object-detection" and data["library_name"] == "transformers"
    assert data["datasets"] == ["user/data"] and data["base_model"] == "Roboflow/rf-detr-nano"
    assert data["license"] == "apache-2.0"
    name, results = model_index_to_eval_results(data["model-index"])
    assert name == "mine"
    assert {(r.metric_type, r.metric_name, r.metric_value, r.dataset_split) for r in results} == {
        ("map", "mAP", 0.3, "eval"), ("map", "mAP of the raw weights", 0.2, "eval"), ("map_50", "mAP50", 0.5, "eval"),
    }  # fmt: skip
    assert all(r.dataset_type == "user/data" for r in results)


def test_the_text_has_results_evaluations_arguments_and_versions(tmp_path, facts):
    write_model_card(tmp_path, facts)
    text = (tmp_path / "README.md").read_text()
    for part in ("| eval | mAP | 0.3000 |", "| eval | mAP of the raw weights | 0.2000 |",
                 "| 4 | 2.00 | 0.3000 | 0.5000 | 0.2500 |", "1.2 M parameters",
                 "circle, square, triangle", "learning_rate: 0.0001", "- torch ", "64 × 64"):  # fmt: skip
        assert part in text
    assert "mAP small" not in text and "runtime" not in text
    assert not re.search(r"\$\w", text)


def test_long_runs_show_twenty_evaluations_and_the_last(tmp_path, facts):
    rows = [{**HISTORY[3], "step": step, "epoch": step / 10} for step in range(1, 101)]
    write_model_card(tmp_path, CardFacts("mine", facts.model_class, facts.config, 1, {}, {}, rows))
    shown = re.findall(r"^\| (\d+) \| [\d.]+ \|", (tmp_path / "README.md").read_text(), re.M)
    assert len(shown) == 20 and shown[-1] == "100"


@pytest.mark.parametrize("model_class", [task.model_class for task in TASKS.values()])
def test_cards_of_every_task_and_their_code(tmp_path, tiny_config, model_class, monkeypatch):
    config = tiny_config(**({"num_keypoints_per_class": [4, 4, 4]} if "Keypoint" in model_class else {}))
    getattr(rfdetr_hf, model_class)(config).save_pretrained(tmp_path)
    RFDETRImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    write_model_card(tmp_path, CardFacts("mine", model_class, config, 1, model_id=str(tmp_path)))
    text = (tmp_path / "README.md").read_text()
    assert "Not evaluated." in text
    auto_class = next(task.auto_class for task in TASKS.values() if task.model_class == model_class)
    assert ("plain transformers" in text) == (auto_class is not None)
    assert auto_class is None or f"model = {auto_class}.from_pretrained" in text
    Image.new("RGB", (80, 60)).save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1].replace("threshold=0.5", "threshold=-1.0"), names)
    assert type(names["model"]).__name__ == model_class
    assert len(names["found"]["boxes"]) > 0


def test_ids_of_the_hub():
    info = DatasetInfo(download_checksums={"hf://datasets/user/data@0123/train.parquet": {}})
    data = make_shapes_dataset(1)
    assert hub_dataset_id(None) is None and hub_dataset_id(data) is None
    data.info.update(info)
    assert hub_dataset_id(data) == "user/data"
    assert hub_model_id("/a/b") is hub_model_id("tests/hub") is hub_model_id(None) is None


def test_a_base_model_is_what_was_fetched_from_the_hub(tmp_path, monkeypatch):
    """A folder "outputs/best" that is gone has the form of a Hub id."""
    commit = "0" * 40
    repository = tmp_path / "models--user--model"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert hub_model_id("user/model") == "user/model"
    assert hub_model_id("outputs/best") is hub_model_id("user/my--model") is hub_model_id("user/name.git") is None


def test_names_are_texts_and_paths_of_the_machine_are_nobodys_business(tmp_path, tiny_config):
    names = ("<script>alert(1)</script>", "a|b\n# heading", "`code` [x](http://y)")
    arguments = {"output_dir": "/home/anna/secret/run", "dataset_name": "C:\\Users\\anna\\data", "note": "```\nx",
                 "tracker_kwargs": {"wandb": {"dir": "/home/anna/logs", "tags": ["/home/anna/x"]}}}  # fmt: skip
    facts = CardFacts("my\n# run <b>", "RFDETRForObjectDetection", tiny_config(names), 1, {}, arguments, license="mit")
    write_model_card(tmp_path, facts)
    text = (tmp_path / "README.md").read_text()
    text = ModelCard(text).text
    assert "<script>" not in text and "<b>" not in text and "\n# heading" not in text and "\n# run" not in text
    assert "anna" not in text and "output_dir: run" in text and "dataset_name: data" in text and "dir: logs" in text
    assert text.count("```") % 2 == 0 and "alert" in text
    assert ModelCard.load(tmp_path / "README.md").data.to_dict()["license"] == "mit"


def test_what_a_reader_would_not_expect(tmp_path, tiny_config):
    write_model_card(tmp_path, CardFacts("a", "RFDETRForInstanceSegmentation", tiny_config(), 1))
    assert "objects inside others" in (tmp_path / "README.md").read_text()
    config = tiny_config(num_keypoints_per_class=[4, 0, 4])
    write_model_card(tmp_path, CardFacts("a", "RFDETRForKeypointDetection", config, 1))
    text = (tmp_path / "README.md").read_text()
    assert "without keypoints (square) are at most 0.5" in " ".join(text.split())
    assert "threshold={1: 1 / 3}, target_sizes" in text


def test_the_code_of_a_card_finds_classes_without_keypoints(tmp_path, tiny_config):
    config = tiny_config(("person", "ball"), num_keypoints_per_class=[4, 0])
    model, processor = RFDETRForKeypointDetection(config).eval(), RFDETRImageProcessor(size={"height": 64, "width": 64})
    write_model_card(tmp_path, CardFacts("a", type(model).__name__, config, 1))
    threshold = re.search(r"threshold=(.*), target_sizes", (tmp_path / "README.md").read_text())
    outputs = model(torch.zeros(1, 3, 64, 64))
    outputs.logits = torch.full_like(outputs.logits, -9)
    outputs.logits[0, 0, 1] = 9
    assert threshold and model.detect(outputs, processor, eval(threshold[1]))[0]["labels"].tolist() == [1]


@pytest.mark.parametrize(
    ("model_class", "name", "title"),
    [
        ("RFDETRForInstanceSegmentation", "segm_map", "mask mAP"),
        ("RFDETRForKeypointDetection", "keypoint_map", "keypoint mAP"),
    ],
)
def test_scores_of_masks_and_keypoints_are_told(tmp_path, facts, model_class, name, title):
    history = [{"step": 4, "epoch": 2.0, "eval_map": 0.3, f"eval_{name}": 0.2}]
    write_model_card(
        tmp_path, replace(facts, model_class=model_class, metrics=history[0], log_history=history, base_model=None)
    )
    text = (tmp_path / "README.md").read_text()
    assert f"| eval | {title} | 0.2000 |" in text
    assert f"| step | epoch | mAP | {title} |" in text and "| 4 | 2.00 | 0.3000 | 0.2000 |" in text


def test_scores_of_several_evaluation_sets_are_in_the_card(tmp_path, tiny_model):
    sets = {name: make_shapes_dataset(2, 64, seed=n) for n, name in enumerate(("a", "b_raw", "segm"))}
    args = RFDETRTrainingArguments(output_dir=str(tmp_path), dataloader_num_workers=0, disable_tqdm=True)
    trainer = RFDETRTrainer(tiny_model(), args, sets["a"], sets)
    trainer.evaluate()
    path = trainer.create_model_card()
    text, (_, results) = (
        path.read_text(),
        model_index_to_eval_results(ModelCard.load(path).data.to_dict()["model-index"]),
    )
    assert "Not evaluated" not in text and "| step | epoch | data | mAP | mAP50 | mAP75 |" in text
    assert {r.dataset_split for r in results} == {"eval_a", "eval_b_raw", "eval_segm"}
    assert {r.metric_name for r in results if r.metric_type == "map"} == {"mAP"}
    assert all(f"| 0 | 0.00 | {name} | " in text for name in ("a", r"b\_raw", "segm"))


def test_the_course_of_several_evaluation_sets(tmp_path, facts):
    history = [
        {"step": step, "epoch": float(step), f"eval_{name}_map": 0.01 * step, f"eval_{name}_raw_map": 0.2,
         f"eval_{name}_runtime": 1.0} for step in range(1, 31) for name in ("x", "y")
    ]  # fmt: skip
    write_model_card(tmp_path, replace(facts, metrics=history[-2] | history[-1], log_history=history))
    text = (tmp_path / "README.md").read_text()
    rows = re.findall(r"^\| (\d+) \| [\d.]+ \| (x|y) \| 0\.\d+ \|$", text, re.MULTILINE)
    assert len(rows) == 40 and rows[-2:] == [("30", "x"), ("30", "y")]
    assert r"| eval\_x | mAP of the raw weights | 0.2000 |" in text and (tmp_path / "curves.png").exists()
