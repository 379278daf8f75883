import functools
import importlib.metadata
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from datasets import DatasetDict
from PIL import Image

from rfdetr_hf import RFDETRImageProcessor, decode_image, load_detection_dataset, make_shapes_dataset, parse_arguments
from rfdetr_hf.cli import config, doctor, fit
from rfdetr_hf.cli.main import VERBS, main

ROOT = Path(__file__).parents[2]
TINY = {
    "variant": "nano", "from_scratch": True, "resolution": 64, "num_train_epochs": 1,
    "config_overrides": {
        "d_model": 32, "decoder_ffn_dim": 64, "decoder_layers": 2, "num_queries": 10, "group_detr": 2,
        "decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 4,
        "backbone_config": {
            "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8, "num_windows": 2,
            "out_indices": [1, 2, 3], "image_size": 64,
        },
    },
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "dataloader_num_workers": 0, "audit": "off",
    "multi_scale": "off", "eval_strategy": "no", "save_strategy": "steps", "save_steps": 2, "max_steps": 4,
    "disable_tqdm": True, "logging_steps": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def shapes_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    splits = {"train": 16, "validation": 4, "test": 4}
    sets = {name: make_shapes_dataset(count, image_size=64, seed=count) for name, count in splits.items()}
    DatasetDict(sets).save_to_disk(folder)
    return folder


@pytest.fixture
def run_yaml(tmp_path, shapes_folder):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**TINY, "dataset_name": str(shapes_folder), "output_dir": str(tmp_path / "run")}))
    return path


@pytest.fixture
def saved_model(tmp_path, tiny_model):
    tiny_model().save_pretrained(tmp_path / "model")
    RFDETRImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def write_shapes(folder, count):
    folder.mkdir(parents=True)
    for row in load_detection_dataset("synthetic-shapes")["test"].select(range(count)):
        decode_image(row).save(folder / f"{row['image_id']}.png")


def test_help_names_every_verb(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^  {verb} +\w", out, re.M) for verb in VERBS)
    assert main([]) == 2


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    assert main([*verb.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: rfdetr-hf {verb}")
    assert len(out) > 200


def test_a_misspelt_verb_names_the_nearest(capsys):
    assert main(["predct"]) == 2
    assert "unknown verb 'predct'; did you mean 'predict'?" in capsys.readouterr().err


def test_a_misspelt_option_is_misuse_in_one_line(capsys):
    assert main(["fit", "--leraning_rate", "1"]) == 2
    assert "did you mean 'learning_rate'" in capsys.readouterr().err
    assert main(["fit", "--learning_rate", "fast"]) == 2
    assert main(["fit", "--learning_rate", "0"]) == 2
    assert "learning_rate=0.0 is not valid" in capsys.readouterr().err


def test_a_failure_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("RFDETR_DEBUG", raising=False)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert main(["predict", "--model_name_or_path", str(tmp_path / "none"), "--images", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "none" in err and "Traceback" not in err
    monkeypatch.setenv("RFDETR_DEBUG", "1")
    main(["predict", "--model_name_or_path", str(tmp_path / "none"), "--images", str(tmp_path)])
    assert "Traceback" in capsys.readouterr().err


def test_an_interruption_is_130(monkeypatch):
    def interrupt(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "main", interrupt)
    assert main(["doctor"]) == 130


def test_config_prints_what_fit_reads_back(run_yaml, tmp_path, capsys):
    assert main(["config", "--config", str(run_yaml), "--learning_rate", "3e-4", "--resume"]) == 0
    out = capsys.readouterr().out
    assert "# effective batch: 4 images x processes" in out
    assert "# input: 64 x 64, a multiple of 16" in out
    (tmp_path / "again.yaml").write_text(out)
    first = parse_arguments(fit.TYPES, ["--config", str(run_yaml), "--learning_rate", "3e-4", "--resume"])
    again = parse_arguments(fit.TYPES, ["--config", str(tmp_path / "again.yaml")])
    assert first == again
    assert first[2].learning_rate == 3e-4 and first[2].resume_from_checkpoint == "true"
    assert yaml.safe_load(config.resolved(*again)) == yaml.safe_load(out)


def test_doctor_reports(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"torch {importlib.metadata.version('torch')}" in out
    assert "everything required is there" in out
    assert re.search(r"^  (installed: .*|)onnx", out, re.M) and "CPU" in out
    assert out.count("pip install -e") <= 1, "a command for all extras"


def test_doctor_finds_what_is_missing(capsys, monkeypatch):
    real = doctor._installed
    others = {"scipy": None, "numpy": "1.0", "onnx": None, "peft": "0.1"}
    monkeypatch.setattr(doctor, "_installed", lambda name: others.get(name, real(name)))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "scipy missing: pip install 'scipy>=1.11'" in out
    assert "numpy 1.0: pip install 'numpy>=1.26'" in out
    assert re.search("^  onnx:      lacks onnx", out, re.M) and "  lora:      lacks peft>=0.18 (0.1 is there)\n" in out
    assert "install the extra 'NAME': python -m pip install -e '.[NAME]'" in out
    assert "something required is missing" in out


def test_fit_trains_and_validate_scores(run_yaml, shapes_folder, tmp_path, capsys):
    assert main(["fit", "--config", str(run_yaml)]) == 0
    folder = tmp_path / "run" / "last"
    assert (folder / "model.safetensors").is_file()
    out = tmp_path / "metrics.json"
    model = ["--model_name_or_path", str(folder), "--num_workers", "0", "--dataset_name", str(shapes_folder)]
    assert main(["validate", *model, "--output", str(out)]) == 0
    assert {"eval_map", "eval_map_50"} <= json.loads(out.read_text()).keys()
    assert main(["validate", *model, "--output", str(out)]) == 1
    capsys.readouterr()
    assert main(["test", *model]) == 0
    assert '"test_map"' in capsys.readouterr().out
    assert main(["fit", "--config", str(run_yaml)]) == 1
    assert "holds an earlier run" in capsys.readouterr().err


def test_predict_writes_pictures_json_and_coco(saved_model, tmp_path, capsys):
    write_shapes(tmp_path / "in" / "deep", 3)
    Image.new("L", (50, 40)).save(tmp_path / "grey.png")
    argv = ["predict", "--model_name_or_path", str(saved_model), "--threshold", "0.0001", "--batch_size", "2",
            "--images", str(tmp_path / "in"), str(tmp_path / "grey.png"), "--output_dir", str(tmp_path / "out"),
            "--formats", "pictures", "json", "coco"]  # fmt: skip
    assert main(argv) == 0
    pictures = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png"))
    assert pictures[-1] == "grey.png" and len(pictures) == 4
    assert pictures[0].startswith("deep/")
    plain = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(plain) == 4
    coco = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [c["name"] for c in coco["categories"]] == ["circle", "square", "triangle"]
    assert coco["images"][3] == {"id": 4, "file_name": str(tmp_path / "grey.png"), "width": 50, "height": 40}
    found = [a for a in coco["annotations"] if a["image_id"] == 4]
    assert len(found) == len(plain["grey"]["objects"]) > 0
    x, y, width, height = found[0]["bbox"]
    assert plain["grey"]["objects"][0]["box"] == pytest.approx([x, y, x + width, y + height], abs=0.02)
    assert f"{tmp_path / 'out' / 'grey.png'}: {len(found)} objects" in capsys.readouterr().out


def test_predict_without_images_is_misuse(saved_model, capsys):
    assert main(["predict", "--model_name_or_path", str(saved_model)]) == 2
    assert "IMAGES (--images) is missing" in capsys.readouterr().err


def test_export_and_convert_are_reached(saved_model, tmp_path):
    assert main(["convert", str(saved_model), str(tmp_path / "official.pth")]) == 0
    assert (tmp_path / "official.pth").is_file()
    assert main(["convert", str(saved_model), str(tmp_path / "official.pth")]) == 1
    assert main(["export", "--model_name_or_path", str(saved_model), "--frmat", "onnx"]) == 2


def interrupt(command, root):
    """Start a training, interrupt it and its launcher after the first checkpoint: exit code, output, errors."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # A shell lets what it starts in the background ignore interruptions, the tests and so their children too.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    options = {"text": True, "env": environment, "cwd": ROOT, "start_new_session": True, "preexec_fn": heed}
    process = subprocess.Popen(command, **pipes, **options)
    deadline = time.monotonic() + 120
    while not list(root.glob("checkpoint-*/manifest.json")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def hint(out):
    """The checkpoint and the words of the command that go on from it."""
    match = re.search(r"(\S+/checkpoint-\d+) is complete\. Go on from there with:\n  (.*)", out)
    assert match is not None, out
    return Path(match[1]), shlex.split(match[2])


def test_ctrl_c_says_where_to_resume_and_resumes(run_yaml, tmp_path):
    root = tmp_path / "run"
    command = [sys.executable, "-m", "rfdetr_hf.cli", "fit", "--config", str(run_yaml), "--max_steps", "400"]
    code, out, err = interrupt(command, root)
    assert code == 75, err
    assert "Traceback" not in err
    checkpoint, words = hint(out)
    assert checkpoint.is_dir()
    assert words[:2] == ["rfdetr-hf", "fit"] and words[-1] == "--resume"
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert main([*words[1:], "--max_steps", str(step + 2)]) == 0
    assert f"resumed from {checkpoint} at step {step}" in (root / "train.log").read_text()
    assert (root / f"checkpoint-{step + 2}").is_dir()


def test_ctrl_c_of_the_example_says_so_too(run_yaml, tmp_path):
    options = ["--config", str(run_yaml), "--max_steps", "400"]
    code, out, err = interrupt([sys.executable, "examples/train.py", *options], tmp_path / "run")
    assert code == 75 and "Traceback" not in err, err
    assert hint(out)[1] == ["python", "examples/train.py", *options, "--resume"]


def test_ctrl_c_under_a_launcher_names_the_launcher(run_yaml, tmp_path):
    launcher = ["--cpu", "--num_processes", "1", "--mixed_precision", "no"]
    options = ["--config", str(run_yaml), "--max_steps", "400", "--resume", "auto"]
    start = [sys.executable, str(Path(sys.executable).parent / "accelerate"), "launch", *launcher]
    _, out, _ = interrupt([*start, "examples/train.py", *options], tmp_path / "run")
    assert hint(out)[1] == ["accelerate", "launch", *launcher, "examples/train.py", *options[:4], "--resume"]


@pytest.mark.parametrize("seen", [True, False])
def test_without_a_terminal_no_library_draws_bars(seen, monkeypatch):
    names = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "argv", ["rfdetr-hf", "--version"])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: seen)
    assert main() == 0
    assert [name in os.environ for name in names] == [not seen] * 2
