"""Verbs of a trained model: the words they share, and the file of its training."""

import json

import pytest
import yaml
from helpers.command_lines import scores_of

from rfdetr_hf import UsageError
from rfdetr_hf.cli.evaluate import TYPES
from rfdetr_hf.cli.evaluate import TYPES as EVALUATE_TYPES
from rfdetr_hf.cli.main import main
from rfdetr_hf.cli.trained import parse_verb


def parse(argv):
    return parse_verb(TYPES, argv, "rfdetr-hf evaluate", "")


def test_the_plain_words_are_model_and_data():
    for words in ("m d --flip", "m --flip d", "--flip m d", "--model=m --data d --flip"):
        args, data_args = parse(words.split())
        assert (args.model_name_or_path, data_args.dataset_name, args.flip) == ("m", "d", True)
    assert parse(["m"])[1].dataset_name == "synthetic-shapes"
    with pytest.raises(UsageError, match=r"MODEL \(--model_name_or_path\) is missing"):
        parse(["--flip", "--split", "test"])
    with pytest.raises(UsageError, match="'x' on the command line is one word too many: MODEL, DATA, then options"):
        parse(["m", "d", "x"])
    with pytest.raises(UsageError, match="--model_name_or_path and MODEL say the same"):
        parse(["m", "--model_name_or_path=n"])


def test_the_file_of_a_training_gives_its_data_and_its_best_model(untrained, tmp_path, capsys):
    model, data = untrained("detection")
    run = tmp_path / "run"
    path = tmp_path / "run.yaml"
    values = {"model_name_or_path": "where/it/starts", "dataset_name": data, "output_dir": str(run), "bf16": True}
    values |= {"learning_rate": 1e-4, "num_train_epochs": 3, "task": "detection", "image_dir": None}
    path.write_text(yaml.safe_dump(values))
    assert main(["validate", "--config", str(path)]) == 2
    assert f"its run has left no {run / 'best'}" in capsys.readouterr().err
    expected = scores_of(["validate", model, data, "--bf16", "--num_workers", "0"], capsys)
    (run).mkdir()
    (run / "best").symlink_to(model)
    assert main(["validate", "--config", str(path), "--num_workers", "0"]) == 0
    out, err = capsys.readouterr()
    assert "ignored here: learning_rate, num_train_epochs" in err and f"model: {run / 'best'}" in err
    assert json.loads(out)["eval_map"] == expected["eval_map"]
    assert main(["evaluate", model, f"--config={path}"]) == 0
    assert "model:" not in capsys.readouterr().err and sorted(p.name for p in run.iterdir()) == ["best"]


def test_a_misspelt_key_of_a_file_is_an_error_beside_those_of_a_training(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("learning_rate: 1\nsplitt: test\n")
    assert main(["evaluate", "m", "d", "--config", str(tmp_path / "run.yaml")]) == 2
    assert "unknown option 'splitt'" in (err := capsys.readouterr().err) and "did you mean 'split'" in err


def test_the_file_of_a_training_with_processes_serves_the_evaluation(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("num_processes: 2\ndevice: 0,1\nlearning_rate: 1e-4\nbatch_size: 3\n")
    args = parse_verb(EVALUATE_TYPES, ["model", "data", "--config", str(file)], "rfdetr-hf evaluate", "")[0]
    assert args.device is None and "num_processes" in capsys.readouterr().err
