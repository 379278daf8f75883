"""`args.yaml`: every argument of a run, from which it can be repeated."""

import hashlib
from types import SimpleNamespace

import pytest
import torch
import yaml
from helpers.hostile import HOSTILE, write_coco
from helpers.runs import quick_arguments

from rfdetr_hf import DataArguments, RFDETRTrainer, UsageError, load_detection_dataset
from rfdetr_hf.cli import fit
from rfdetr_hf.data.fingerprint import data_hash
from rfdetr_hf.training.checkpoint.run_directory import PICTURES
from rfdetr_hf.training.record import RunRecord


def bits(folder):
    """Checksums of what a run that is repeated must have in common with the first."""
    files = [folder / place / "model.safetensors" for place in ("best", "last")] + [folder / "metrics.csv"]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def test_args_yaml_repeats_the_run_to_the_bit_with_and_without_pictures(hostile_run, tmp_path):
    again = tmp_path / "again"
    assert fit.main(["--config", str(hostile_run / "args.yaml"), "--output_dir", str(again), "--plots", "false"]) == 0
    assert bits(again) == bits(hostile_run)
    left = {path.name for path in again.iterdir()}
    assert not left & {*PICTURES} - {"report.html"} and not [*again.rglob("*.png"), *again.rglob("*.jpg")]
    assert "<img" not in (again / "report.html").read_text()
    before, after = (yaml.safe_load((each / "args.yaml").read_text()) for each in (hostile_run, again))
    assert {name for name in before if before[name] != after[name]} == {"output_dir", "plots"}


def test_args_yaml_repeats_a_mixture(hostile_data, tmp_path, monkeypatch):
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


def test_args_yaml_has_every_argument_and_no_secret(hostile_run, hostile_data):
    values = yaml.safe_load((hostile_run / "args.yaml").read_text())
    for kind in fit.TYPES[:3]:  # where a run is launched is no argument of it
        assert {name for name in kind.__dataclass_fields__ if not name.startswith("_")} <= set(values)
    assert (
        values["dataset_name"] == str(hostile_data)
        and values["output_dir"] == str(hostile_run)
        and values["hub_token"] is None
    )
    splits = load_detection_dataset(str(hostile_data))
    assert values["data_hash"] == data_hash(splits) and set(splits) < set(values["data_hash"])


def test_other_data_is_refused_with_the_remedy(hostile_run, hostile_data, tmp_path):
    """A picture that changes, and nothing else: as large a file, the same annotations."""
    moved = tmp_path / "moved"
    write_coco(moved, {"train": 8, "valid": 5, "test": 3})
    expected = yaml.safe_load((hostile_run / "args.yaml").read_text())["data_hash"]
    load_detection_dataset(str(moved), data_hash=expected)  # elsewhere is no other data
    image = next((moved / "valid").glob("*.png"))
    content = bytearray(image.read_bytes())
    content[-20] ^= 1
    image.write_bytes(content)
    words = [
        "--config",
        str(hostile_run / "args.yaml"),
        "--dataset_name",
        str(moved),
        "--output_dir",
        str(tmp_path / "x"),
    ]
    with pytest.raises(ValueError, match=r"differ in validation \(5 images\). Restore the data.*--data_hash '\{\}'"):
        fit.main(words)
    load_detection_dataset(str(moved), data_hash={})
    by_size = data_hash(load_detection_dataset(str(hostile_data)), "sizes")
    load_detection_dataset(str(moved), data_hash=by_size)
    with pytest.raises(ValueError, match="kind='md5' is not known"):
        load_detection_dataset(str(moved), data_hash={"kind": "md5"})
    (moved / "test" / "_annotations.coco.json").unlink()
    with pytest.raises(ValueError, match=r"test \(missing\)"):
        load_detection_dataset(str(moved), data_hash=by_size)


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
