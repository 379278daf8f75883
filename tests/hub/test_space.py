"""The demo as a Space: what its folder holds, and its way to the Hub."""

import ast
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from helpers.models import tiny_model
from helpers.scripts import ROOT

import rfdetr_hf
from rfdetr_hf import RFDETRImageProcessor, push_space, write_space
from rfdetr_hf.cli.main import main
from rfdetr_hf.hub import space


@pytest.fixture(autouse=True)
def gradio_is_installed(monkeypatch):
    """Its version is all that is needed of it."""
    monkeypatch.setattr(space, "version", lambda name: "6.0.0" if name == "gradio" else version(name))


@pytest.fixture
def model(tmp_path):
    tiny_model().save_pretrained(tmp_path / "shapes")
    RFDETRImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "shapes")
    (tmp_path / "shapes" / "README.md").write_text("# The card\n")
    (tmp_path / "shapes" / "optimizer.bin").write_text("not of the model")
    return str(tmp_path / "shapes")


def card_of(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_a_space_of_a_folder_runs_by_itself(tmp_path, model):
    write_space(tmp_path / "space", model, 'Shapes: "mine"')
    folder = tmp_path / "space"
    card = card_of((folder / "README.md").read_text())
    assert (card["title"], card["sdk"], card["sdk_version"], card["app_file"]) == (
        'Shapes: "mine"',
        "gradio",
        "6.0.0",
        "app.py",
    )
    assert "models" not in card and "(model/README.md)" in (folder / "README.md").read_text()
    pins = dict(line.split("==") for line in (folder / "requirements.txt").read_text().split())
    assert pins["transformers"] == version("transformers") and "+" not in pins["torch"]
    assert sorted(path.name for path in (folder / "model").iterdir()) == [
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json",
    ]  # fmt: skip
    assert ast.parse((folder / "app.py").read_text()) and 'Shapes: \\"mine\\"' in (folder / "app.py").read_text()
    # The package of the folder, not this one; all it imports but the standard library is among the requirements.
    script = (
        "import sys, json, rfdetr_hf\n"
        "from rfdetr_hf.inference.demo import _Viewer, load_detector\n"
        "from PIL import Image\n"
        "viewer = _Viewer(load_detector('model'))\n"
        "print(viewer.look_and_show(Image.new('RGB', (9, 9)), 0.0, [], ['boxes'])[1])\n"
        "print(json.dumps([rfdetr_hf.__file__, *sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    answer, found = run.stdout.splitlines()[-2:]
    where, *modules = json.loads(found)
    assert Path(where).is_relative_to(folder) and "ms on cpu, 9 × 9 pixels" in answer
    import tomllib

    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    needed = {name.split(">")[0] for name in needed}
    imported = {name.replace("_", "-") for name in modules} | ({"pillow"} if "PIL" in modules else set())
    imported |= {"pyyaml"} if "yaml" in modules else set()
    assert needed & imported <= set(space.REQUIREMENTS)


def test_a_space_of_a_repository_refers_to_it(tmp_path):
    write_space(tmp_path / "space", "someone/shapes", "shapes")
    text = (tmp_path / "space" / "README.md").read_text()
    assert card_of(text)["models"] == ["someone/shapes"] and "https://huggingface.co/someone/shapes)" in text
    assert 'build_demo("someone/shapes", title="shapes")' in (tmp_path / "space" / "app.py").read_text()
    assert not (tmp_path / "space" / "model").exists()
    (tmp_path / "model.pth").write_text("")
    with pytest.raises(ValueError, match="model.pth is neither a model folder nor a Hub id.*convert"):
        write_space(tmp_path / "other", str(tmp_path / "model.pth"), "other")


def test_a_space_is_pushed_updated_and_never_put_over_another_app(hub, model, capsys):
    assert main(["demo", model, "--space", "tester/shapes"]) == 0
    assert f"{hub.url}/spaces/tester/shapes is the demo of {model}" in capsys.readouterr().out
    pushed = hub.repos["spaces/tester/shapes"]
    assert {"app.py", "README.md", "requirements.txt", "model/model.safetensors", "rfdetr_hf/cli/main.py"} <= set(
        pushed.files
    )
    assert push_space("tester/shapes", model) and len(pushed.commits) == 2, "ours is updated"
    pushed.files["README.md"] = b"---\nsdk: gradio\n---\n"
    with pytest.raises(FileExistsError, match="the Space tester/shapes has another app"):
        push_space("tester/shapes", model)
    assert main(["demo", model, "--space", "shapes"]) == 2
    assert "give user/name" in capsys.readouterr().err


def test_a_package_that_is_not_installed_is_named(monkeypatch, tmp_path, model):
    monkeypatch.setattr(space, "version", version)
    monkeypatch.setattr(space, "REQUIREMENTS", ("no-such-package",))
    with pytest.raises(ImportError, match="version of no-such-package"):
        write_space(tmp_path / "space", model, "x")
    assert rfdetr_hf.__version__
