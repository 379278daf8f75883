"""What a run leaves besides models: the arguments that repeat it, its pictures and its report."""

import hashlib
import itertools
import json
import logging
import re
from types import SimpleNamespace

import pytest
import torch
import yaml
from datasets import ClassLabel, List
from helpers.browser import chromium, look_at
from helpers.models import TINY_OVERRIDES as TINY
from helpers.runs import metrics_rows, quick_arguments
from PIL import Image

from rfdetr_hf import RFDETRTrainer, UsageError, load_detection_dataset, make_shapes_dataset
from rfdetr_hf.arguments.data import DataArguments
from rfdetr_hf.cli import fit
from rfdetr_hf.data.fingerprint import data_hash
from rfdetr_hf.evaluation.evaluator import CocoEvaluator
from rfdetr_hf.evaluation.report import write_report
from rfdetr_hf.training import pictures, state
from rfdetr_hf.training.checkpoint.run_directory import OF_THE_BEST, PICTURES
from rfdetr_hf.training.record import RunRecord

HOSTILE = "<img src=x onerror=alert(1)> & $x$"


def write_coco(folder, splits):
    """A Roboflow export of shapes, one of whose classes has a hostile name."""
    for split, count in splits.items():
        (folder / split).mkdir(parents=True)
        rows = make_shapes_dataset(count, image_size=64, seed=len(split))
        names = [HOSTILE, "square", "triangle"]
        coco = {"images": [], "annotations": [], "categories": [{"id": i, "name": n} for i, n in enumerate(names)]}
        for row in rows:
            name, objects = f"{row['image_id']}.png", row["objects"]
            (folder / split / name).write_bytes(row["image"]["bytes"])
            coco["images"].append({"id": row["image_id"], "file_name": name, "width": 64, "height": 64})
            for box, label in zip(objects["bbox"], objects["category"], strict=True):
                about = {"id": len(coco["annotations"]) + 1, "image_id": row["image_id"], "iscrowd": 0}
                coco["annotations"].append(about | {"bbox": box, "category_id": label, "area": box[2] * box[3]})
        (folder / split / "_annotations.coco.json").write_text(json.dumps(coco))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_coco(folder, {"train": 8, "valid": 5, "test": 3})
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run of the command with all its pictures."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    words = ["--model_name_or_path", "nano", "--from_scratch", "--config_overrides", json.dumps(TINY)]
    words += ["--resolution", "64", "--max_steps", "4", "--eval_strategy", "steps", "--eval_steps", "2"]
    words += ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--logging_steps", "1"]
    words += ["--dataset_name", str(data), "--output_dir", str(folder), "--dataloader_num_workers", "0"]
    assert fit.main([*words, "--disable_tqdm", "--save_strategy", "no", "--learning_rate", "1e-3"]) == 0
    return folder


def bits(folder):
    """Checksums of what a run that is repeated must have in common with the first."""
    files = [folder / place / "model.safetensors" for place in ("best", "last")] + [folder / "metrics.csv"]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def test_args_yaml_repeats_the_run_to_the_bit_with_and_without_pictures(run, tmp_path):
    again = tmp_path / "again"
    assert fit.main(["--config", str(run / "args.yaml"), "--output_dir", str(again), "--plots", "false"]) == 0
    assert bits(again) == bits(run)
    left = {path.name for path in again.iterdir()}
    assert not left & {*PICTURES} - {"report.html"} and not [*again.rglob("*.png"), *again.rglob("*.jpg")]
    assert "<img" not in (again / "report.html").read_text()
    before, after = (yaml.safe_load((each / "args.yaml").read_text()) for each in (run, again))
    assert {name for name in before if before[name] != after[name]} == {"output_dir", "plots"}


def test_args_yaml_repeats_a_mixture(data, tmp_path, monkeypatch):
    splits = {"train": 2}
    for name in ("api_key", "token"):
        write_coco(tmp_path / name, splits)
    monkeypatch.chdir(tmp_path)
    own = {"classes": {"key": ["square"], "token": "triangle", "x": [HOSTILE]}, "hub_token": "hf_secret"}
    mixed = {"api_key": {"share": 1}, "named": {"name_or_path": "token", "share": 2, **own}}
    accelerator = SimpleNamespace(num_processes=1, device=torch.device("cpu"))

    def written(**options):
        record = RunRecord([DataArguments(**options)])
        text = record.to_yaml(quick_arguments(tmp_path / "run"), SimpleNamespace(_name_or_path="x"), {}, accelerator)
        assert "hf_secret" not in text and "secret@" not in text
        return yaml.safe_load(text)

    sources = written(sources=mixed)["sources"]
    assert sources["named"].pop("hub_token") is None
    monkeypatch.chdir("/")
    names = load_detection_dataset(sources=sources)["train"].features["objects"]["category"].feature.names
    assert set(names) == {HOSTILE, "square", "triangle", "key", "token", "x"}
    assert list(sources) == [str(tmp_path / "api_key"), "named"]
    monkeypatch.chdir(tmp_path)
    assert written(dataset_name="api_key,token")["dataset_name"] == f"{tmp_path / 'api_key'},{tmp_path / 'token'}"
    assert list(written(sources={"s3://me:secret@bucket/x": None})["sources"]) == ["s3://bucket/x"]


def test_args_yaml_has_every_argument_and_no_secret(run, data):
    values = yaml.safe_load((run / "args.yaml").read_text())
    for kind in fit.TYPES[:3]:  # where a run is launched is no argument of it
        assert {name for name in kind.__dataclass_fields__ if not name.startswith("_")} <= set(values)
    assert values["dataset_name"] == str(data) and values["output_dir"] == str(run) and values["hub_token"] is None
    splits = load_detection_dataset(str(data))
    assert values["data_hash"] == data_hash(splits) and set(splits) < set(values["data_hash"])


def test_other_data_is_refused_with_the_remedy(run, data, tmp_path):
    """A picture that changes, and nothing else: as large a file, the same annotations."""
    moved = tmp_path / "moved"
    write_coco(moved, {"train": 8, "valid": 5, "test": 3})
    expected = yaml.safe_load((run / "args.yaml").read_text())["data_hash"]
    load_detection_dataset(str(moved), data_hash=expected)  # elsewhere is no other data
    image = next((moved / "valid").glob("*.png"))
    content = bytearray(image.read_bytes())
    content[-20] ^= 1
    image.write_bytes(content)
    words = ["--config", str(run / "args.yaml"), "--dataset_name", str(moved), "--output_dir", str(tmp_path / "x")]
    with pytest.raises(ValueError, match=r"differ in validation \(5 images\). Restore the data.*--data_hash '\{\}'"):
        fit.main(words)
    load_detection_dataset(str(moved), data_hash={})
    by_size = data_hash(load_detection_dataset(str(data)), "sizes")
    load_detection_dataset(str(moved), data_hash=by_size)
    with pytest.raises(ValueError, match="kind='md5' is not known"):
        load_detection_dataset(str(moved), data_hash={"kind": "md5"})
    (moved / "test" / "_annotations.coco.json").unlink()
    with pytest.raises(ValueError, match=r"test \(missing\)"):
        load_detection_dataset(str(moved), data_hash=by_size)


def test_pictures_lie_at_the_top_of_the_run(run):
    for name in PICTURES:
        assert (run / name).is_file(), name
    assert not list(run.glob(".*"))
    # 4 images of 480 pixels in a row, and gaps; 4 steps of 4 images.
    assert Image.open(run / "train_batch.jpg").size == (4 * 484 - 4, 4 * 484 - 4)
    sizes = [Image.open(run / f"val_{name}.jpg").size for name in ("labels", "pred")]
    assert sizes == [(4 * 484 - 4, 2 * 484 - 4)] * 2
    for name in OF_THE_BEST:
        if name.endswith(".png"):
            assert (run / name).read_bytes() in [path.read_bytes() for path in run.glob(f"eval/*/*/{name}")]


def test_the_report_tells_the_run_and_lets_no_name_in(run):
    page = (run / "report.html").read_text()
    for text in ("8 images", "of 3 classes", "The training ended at step 4 of 4", "EMA weights of step",
                 "load_detector", "args.yaml", "learning_rate_encoder", "validation (5 images)", "transformers", "AP50",
                 "On the 3 images of the test split"):  # fmt: skip
        assert text in page, text
    assert HOSTILE not in page and "&lt;img src=x onerror=alert(1)&gt; &amp; $x$" in page
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/png") >= 5 and page.count("data:image/jpeg") >= 5
    assert page.count("<!-- best model -->") == page.count("<!-- end of best model -->") == 1


@pytest.mark.browser
@pytest.mark.timeout(900)
def test_the_reports_in_a_browser(run, tmp_path):
    """Nothing is wider than its window, nothing is loaded, nothing runs; the page follows the colours of the system."""
    shapes = load_detection_dataset("synthetic-shapes")["test"].select(range(6))
    names = [HOSTILE, "a" * 150, "\u202eright to left \u5186 <b>" + "<!-- end of best model -->"]
    category = List(ClassLabel(names=names))
    renamed = shapes.cast_column("objects", {**shapes.features["objects"], "category": category})
    evaluator = CocoEvaluator(renamed)
    found = [
        {"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}
    ] * 6
    evaluator.update(renamed["image_id"], found)
    write_report(evaluator, tmp_path, renamed, title=HOSTILE)
    with chromium() as browser:
        windows = {run: ((360, "light"), (1440, "dark")), tmp_path: ((360, "dark"), (900, "dark"), (1440, "light"))}
        for folder, seen_in in windows.items():
            page = folder / "report.html"
            for width, scheme in seen_in:
                seen = look_at(browser, page, width, scheme)
                assert seen["width"] <= width and seen["too_wide"] == [], (page, width)
                assert seen["requests"] == seen["said"] == seen["broken"] == []
                dark, light = (sum(map(int, re.findall(r"\d+", seen[part])[:3])) for part in ("background", "text"))
                assert (dark < 150 and light > 500) if scheme == "dark" else (dark > 700 and light < 200)


def test_a_failing_picture_costs_a_line_of_the_log(tmp_path, tiny_model, shapes, monkeypatch, caplog):
    def fail(*_args, **_options):
        raise RuntimeError("no ink")

    for name in ("save_labels", "draw_batch", "save_curves", "evaluation_part", "draw_labels_and_detections"):
        monkeypatch.setattr(pictures, name, fail)
    args = quick_arguments(tmp_path / "run", plots=True, max_steps=1, eval_strategy="steps", eval_steps=1)
    with caplog.at_level(logging.WARNING, logger="rfdetr_hf"):
        RFDETRTrainer(tiny_model(), args, shapes.select(range(4)), shapes.select(range(3))).train()
    warned = [record.getMessage() for record in caplog.records if "no ink" in record.getMessage()]
    for name in ("labels.jpg", "train_batch.jpg", "results.png", "val_pred.jpg"):
        assert any(name in line and "RuntimeError" in line for line in warned), name
    assert len(metrics_rows(tmp_path / "run")) == 2 and not list((tmp_path / "run").glob(".*"))
    assert "ended at step 1 of 1" in (tmp_path / "run" / "report.html").read_text()


def test_files_of_the_user_are_set_aside(tmp_path, tiny_model, shapes):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("args.yaml", "labels.jpg", "report.html"):
        (folder / name).write_text("mine")
    args = quick_arguments(folder, max_steps=1, eval_strategy="no", save_strategy="no")
    RFDETRTrainer(tiny_model(), args, shapes).train()
    aside = {path.name: path.read_text() for path in (folder / "set-aside").rglob("*") if path.is_file()}
    assert aside == dict.fromkeys(("args.yaml", "labels.jpg", "report.html"), "mine")


def test_what_was_made_in_python_is_named(tmp_path, tiny_model, shapes):
    """The file cannot repeat the run, and says so before anything is trained."""
    args = quick_arguments(tmp_path / "run", max_steps=1, eval_strategy="no", save_strategy="no")
    trainer = RFDETRTrainer(tiny_model(), args, shapes, augmentation=lambda image, target: (image, target))
    trainer.train()
    path = tmp_path / "run" / "args.yaml"
    assert "Given in Python, and not here: augmentation." in path.read_text()
    values = yaml.safe_load(path.read_text())
    assert values["model_name_or_path"] == values["dataset_name"] == "./made-in-python"
    assert values["data_hash"] == data_hash({"train": shapes}, "sizes")  # audit is off
    with pytest.raises((ValueError, FileNotFoundError, UsageError), match="made-in-python"):
        fit.main(["--config", str(path), "--output_dir", str(tmp_path / "other")])
    with pytest.raises(TypeError, match="made_from has a dict"):
        RFDETRTrainer(tiny_model(), args, shapes, made_from=[{}])


def test_a_finished_run_that_is_resumed_keeps_the_time_of_its_report(tmp_path, tiny_model, monkeypatch, caplog):
    data, options = make_shapes_dataset(4, image_size=64), {"gradient_accumulation_steps": 1, "max_steps": 2}

    def report(**more):
        RFDETRTrainer(tiny_model(), quick_arguments(tmp_path, **options, **more), data, data).train()
        return (tmp_path / "report.html").read_text()

    hours = itertools.count(step=3600)
    with monkeypatch.context() as patched:
        patched.setattr(state, "time", SimpleNamespace(perf_counter=lambda: next(hours)))
        assert "took 2:00:00 (h:mm:ss)" in report()
    with caplog.at_level(logging.INFO):
        # The second hour came after the last checkpoint.
        assert "ended at step 2 of 2 (epoch 0.4) and took 1:00:00 (h:mm:ss)" in report(resume_from_checkpoint="true")
    assert "the run has all its 2 steps, and nothing is left to train" in caplog.text
    assert "end, without a step" in caplog.text and "mean loss 0" not in caplog.text
