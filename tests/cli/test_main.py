import functools
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from rfdetr_hf.cli import doctor
from rfdetr_hf.cli.main import VERBS, main

ROOT = Path(__file__).parents[2]


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
