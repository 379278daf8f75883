"""What is wrong with the local paths of a command is said before the Hub is asked for a model."""

import json

import pytest

import rfdetr_hf
from rfdetr_hf.cli.main import main


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    def asked(*args, **kwargs):
        raise AssertionError("the Hub was asked first")

    for module, name in (("huggingface_hub", "hf_hub_download"), ("transformers.utils.hub", "cached_file")):
        monkeypatch.setattr(f"{module}.{name}", asked)
    monkeypatch.setattr(rfdetr_hf, "load_model", asked, raising=False)


@pytest.fixture
def taken(tmp_path):
    """A folder with a file, and a run that has begun in another."""
    (tmp_path / "full").mkdir()
    for name in ("full/a.txt", "model.onnx", "metrics.json"):
        (tmp_path / name).write_text("x")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "model.safetensors").write_text("x")
    listed = {"size": 9, "sha256": "0" * 64}
    (tmp_path / "cut" / "manifest.json").write_text(json.dumps({"files": {"model.safetensors": listed}}))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("step\n1\n")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fit {0}/none --model someone/model --output_dir {0}/new", "{0}/none"),
        ("fit synthetic-shapes --model someone/model --output_dir {0}/run", "holds an earlier run"),
        ("fit synthetic-shapes --model someone/model --output_dir {0}/new --resume {0}/full", "manifest.json"),
        ("fit synthetic-shapes --model someone/model --output_dir {0}/new --resume {0}/cut", "model.safetensors has 1"),
        ("evaluate someone/model {0}/none", "{0}/none"),
        ("evaluate someone/model synthetic-shapes --output_dir {0}/full", "has files"),
        ("validate someone/model {0}/none", "{0}/none"),
        ("test someone/model synthetic-shapes --output {0}/metrics.json", "metrics.json exists"),
        ("predict someone/model {0}/none.jpg --output_dir {0}/new", "none.jpg"),
        ("predict someone/model {0}/full --output_dir {0}/full", "has files"),
        ("export someone/model --output {0}/model", "model.onnx exists; choose another name"),
        ("convert someone/model {0}/full", "full exists"),
    ],
)
def test_paths_come_first(taken, words, message, capsys):
    assert main(words.format(taken).split()) == 1
    assert message.format(taken) in (err := capsys.readouterr().err) and "Hub was asked" not in err
