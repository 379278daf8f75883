"""The words of rfdetr, ultralytics and Transformers on the command line, in files, in Python and as verbs."""

import ast
import dataclasses
import importlib.util
import os
import re
from pathlib import Path

import pytest
import transformers
from helpers.scripts import ROOT
from transformers import TrainingArguments

import rfdetr_hf
from rfdetr_hf import (
    DataArguments,
    EvaluateArguments,
    ExportArguments,
    LaunchArguments,
    ModelArguments,
    PredictArguments,
    RFDETRConfig,
    RFDETRTrainingArguments,
    UsageError,
    parse_arguments,
)
from rfdetr_hf.arguments.words import OWNERS, PACKAGES, aliases, entries, explain, words_of
from rfdetr_hf.cli.fit import TYPES
from rfdetr_hf.cli.main import VERBS, main

FIT = [each.name for cls in TYPES for each in dataclasses.fields(cls)]
WORDS = [word for package in PACKAGES for word in words_of(package)]


def listed(package):
    """The words of a package as the repository lists them; the first line says which version."""
    lines = (Path(__file__).parent / "peers" / f"{package}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_word_of_a_package_has_one_line(package):
    names = [word.name for word in words_of(package)]
    present = [word.name for word in words_of(package) if word.section != "Older words"]
    assert sorted(present) == sorted(listed(package)) and len(set(names)) == len(names) > 100


def test_targets_exist_and_what_has_none_has_a_reason():
    config = RFDETRConfig.from_variant("nano")
    for word in [*WORDS, *words_of("verbs")]:
        assert (word.sign == "-") == (not word.targets) and (word.targets or word.remark), word
        for target in word.targets:
            owner, _, name = target.rpartition(".")
            if owner in OWNERS:
                cls = getattr(rfdetr_hf, OWNERS[owner][1])
                assert name in [each.name for each in dataclasses.fields(cls)], target
            elif owner in ("config", "backbone"):
                assert hasattr(config.backbone_config if owner == "backbone" else config, name), target
            else:
                assert word in words_of("verbs") and name in VERBS or target == "--config" or owner == "trainer" or (
                    hasattr(rfdetr_hf, target.split(".")[0]) or (ROOT / target).exists()
                ), target  # fmt: skip


def test_an_alias_means_the_same_in_every_package():
    known = aliases(FIT)
    assert known.items() >= {
        "epochs": "num_train_epochs", "batch_size": "per_device_train_batch_size", "lr": "learning_rate",
        "imgsz": "resolution", "data": "dataset_name", "resume": "resume_from_checkpoint",
        "model": "model_name_or_path",
    }.items()  # fmt: skip
    assert not set(known) & set(FIT) and set(known.values()) <= set(FIT)
    for word in known:
        assert len({(each.sign, each.targets) for each in entries(word)}) == 1


@pytest.mark.parametrize("package", PACKAGES)
def test_the_command_line_and_files_take_a_word_or_say_what_it_is(package, tmp_path):
    """No word gets the nearest name of something else."""
    known = aliases(FIT)
    for word in words_of(package):
        if word.name in FIT or word.name in known:
            continue
        (tmp_path / "run.yaml").write_text(f"{word.name}: 1\n")
        for argv in ([f"--{word.name}", "1"], ["--config", str(tmp_path / "run.yaml")]):
            with pytest.raises(UsageError) as caught:
                parse_arguments(TYPES, argv)
            message = str(caught.value)
            assert f"unknown option '{word.name}'" in message and "did you mean" not in message
            assert f"{word.name} of " in message and package in message
            assert not word.targets or word.targets[0].rpartition(".")[2] in message


def test_aliases_are_their_options_on_the_command_line_and_in_files(tmp_path):
    (tmp_path / "run.yaml").write_text("epochs: 3\nlr: 1e-3\nimgsz: 320\n")
    model, data, training, launch = parse_arguments(
        TYPES, ["my/data", "--config", str(tmp_path / "run.yaml"), "--batch-size", "2", "--device", "cpu", "--resume"],
        positional={"dataset_name": "DATA"},
    )  # fmt: skip
    assert (model.resolution, data.dataset_name, launch.device) == (320, "my/data", "cpu")
    assert (training.num_train_epochs, training.learning_rate) == (3.0, 1e-3)
    assert (training.per_device_train_batch_size, training.resume_from_checkpoint) == (2, "true")
    with pytest.raises(UsageError, match="--num_train_epochs and --epochs say the same"):
        parse_arguments(TYPES, ["--num_train_epochs", "1", "--epochs", "2"])
    (tmp_path / "twice.yaml").write_text("epochs: 3\nnum_train_epochs: 4\n")
    with pytest.raises(UsageError, match="epochs and num_train_epochs say the same"):
        parse_arguments(TYPES, ["--config", str(tmp_path / "twice.yaml")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mosaic", "1"], "mosaic of ultralytics is augmentation here"),
        (["--nms", "1"], "nms of ultralytics is not here"),
        (["--patience", "5"], "patience of ultralytics is early_stopping_patience here"),
        (["--cls_loss_coef", "1"], "cls_loss_coef of rfdetr is class_loss_coefficient of config_overrides here"),
        (["--conf", "0.5"], "conf of ultralytics is threshold of rfdetr-hf predict here"),
        (["--optim", "sgd"], "optim of transformers is not here: AdamW is part of the recipe"),
        (["epochs=3"], "options are written --epochs=3"),
        (["--epochss", "3"], "did you mean 'num_train_epochs'"),
        (["--zzz", "3"], "unknown option 'zzz' on the command line"),
    ],
)
def test_answers(words, message):
    with pytest.raises(UsageError) as caught:
        parse_arguments(TYPES, words)
    assert message in str(caught.value)


def test_a_keyword_of_python_is_answered_too():
    with pytest.raises(TypeError, match="Arguments has no option 'lr': lr of rfdetr is learning_rate here"):
        RFDETRTrainingArguments(lr=1e-4)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="model of ultralytics is model_name_or_path of ModelArguments here"):
        RFDETRTrainingArguments(model="nano")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="did you mean 'learning_rate'"):
        RFDETRTrainingArguments(learning_rat=1e-4)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="ModelArguments has no option 'zzz'$"):
        ModelArguments(zzz=1)  # type: ignore[call-arg]
    for cls in (DataArguments, LaunchArguments, PredictArguments, EvaluateArguments, ExportArguments):
        with pytest.raises(TypeError, match="has no option 'epochs': epochs of rfdetr and ultralytics is num_train"):
            cls(epochs=1)
    assert RFDETRTrainingArguments("out", seed=3).seed == 3


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        ("train", "train of rfdetr is fit here"),
        ("val", "val of ultralytics is validate here"),
        ("detect", "is predict here"),
        ("track", "track of ultralytics is not here: there is no tracking"),
        ("predct", "did you mean 'predict'?"),
    ],
)
def test_verbs_of_others_are_answered(verb, message, capsys):
    assert main([verb]) == 2
    assert message in capsys.readouterr().err


def test_a_name_that_nobody_has_gets_no_far_neighbour():
    for name in ("lrate", "dat", "batchsize_x", "foo"):
        assert "lora_r" not in explain(name, FIT) and "adam_beta2" not in explain(name, FIT)


def test_the_words_of_transformers_are_those_of_the_installed_version():
    ours, theirs = set(listed("transformers")), {each.name for each in dataclasses.fields(TrainingArguments)}
    if not transformers.__version__.startswith("5.24."):
        pytest.skip("the list is that of 5.24")
    assert ours == {name for name in theirs if not name.startswith("_")}


def peer_file(package, path):
    """A file of an installed package, or of the site-packages folder that RFDETR_TEST_PEERS names."""
    folder = os.environ.get("RFDETR_TEST_PEERS")
    found = importlib.util.find_spec(package)
    root = Path(folder) / package if folder else Path(found.origin).parent if found and found.origin else None
    if root is None or not (root / path).is_file():
        pytest.skip(f"needs {package}: install it, or set RFDETR_TEST_PEERS to a site-packages folder that has it")
    return (root / path).read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_words_of_rfdetr_are_those_of_the_package():
    found = set()
    for node in ast.parse(peer_file("rfdetr", "config.py")).body:
        if isinstance(node, ast.ClassDef) and re.fullmatch(r"ModelConfig|\w*TrainConfig", node.name):
            fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
            found |= {ast.unparse(f.target) for f in fields if "ClassVar" not in ast.unparse(f.annotation)}
    assert {name for name in found if not name.startswith("_") and name != "model_config"} == set(listed("rfdetr"))


@pytest.mark.slow
def test_the_words_of_ultralytics_are_those_of_the_package():
    text = peer_file("ultralytics", "cfg/default.yaml")
    assert set(re.findall(r"^(\w+):", text, re.M)) == set(listed("ultralytics"))
    modes = re.search(r"^MODES = \(([^)]*)\)", peer_file("ultralytics", "cfg/__init__.py"), re.M)
    ours = {word.name for word in words_of("verbs") if word.package == "ultralytics"}
    assert modes is not None and set(re.findall(r"\w+", modes[1])) <= ours | set(VERBS)
