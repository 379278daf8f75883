from pathlib import Path

import pytest
from helpers.scripts import load_script


@pytest.fixture
def compare():
    return load_script("tools/compare_losses.py")


def write_metrics(folder, *rows):
    folder.mkdir()
    lines = ["step,epoch,loss,loss_ce,eval_map", *rows]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


def test_equal_curves(compare, tmp_path, capsys):
    a = write_metrics(tmp_path / "a", "1,0.1,2.0,1.0,", "2,0.2,1.0,0.5,", "2,0.2,,,0.3")
    b = write_metrics(tmp_path / "b", "1,0.1,2.00001,1.0,", "2,0.2,1.0,0.5,", "3,0.3,9.0,9.0,")
    assert compare.main([a, b, "--rtol", "1e-4"]) == 0
    assert capsys.readouterr().out.count("equal") == 2


def test_different_curves(compare, tmp_path, capsys):
    a = write_metrics(tmp_path / "a", "1,0.1,2.0,1.0,", "2,0.2,1.0,0.5,", "3,0.3,1.0,nan,")
    b = write_metrics(tmp_path / "b", "1,0.1,2.0,1.0,", "2,0.2,1.1,0.5,", "3,0.3,2.0,0.5,")
    assert compare.main([a, b]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "5.00e-01 at step 3; beyond 1e-05 from step 2 on" in lines[0] and "inf at step 3" in lines[1]


def test_curves_that_cannot_be_compared(compare, tmp_path, capsys):
    a = write_metrics(tmp_path / "a", "1,0.1,2.0,1.0,")
    b = write_metrics(tmp_path / "b", "2,0.1,2.0,,")
    assert compare.main([a, b]) == 1
    assert capsys.readouterr().out.count("no step in common") == 2
    with pytest.raises(ValueError, match="has no loss"):
        compare.read_curves(write_metrics(tmp_path / "c", "1,0.1,,,0.5"))


HOUSE = {
    "training/trainer.py": "class RFDETRTrainer:\n    def train(self):\n        self.loop()\n        save(self)\n"
    "    def loop(self):\n        self.training_step()\n    def training_step(self):\n        return _short(1)\n"
    "def _short(x):\n    return x\n",
    "training/saving.py": "from .trainer import RFDETRTrainer\ndef save(trainer: RFDETRTrainer):\n"
    "    trainer.done = trainer._secret\n",
    "models/a.py": "def f():\n    from ..training import saving\n    return saving\n"
    "KINDS = {'detection': 1, 'keypoints': 2}\n",
    "losses/b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..models import a\n",
    "arguments/status.py": "def has_no_tests():\n    pass\n",
    "losses/c.py": '"""Text."""\n' + "def f():\n" + "    x = 1\n" * 61,
}


def test_the_measures_of_the_house_find_what_they_look_for(tmp_path):
    house = load_script("tools/house.py")
    files = {"__init__.py": "", **HOUSE}
    files |= {f"{Path(name).parent}/__init__.py": "" for name in HOUSE}
    for name, text in files.items():
        path = tmp_path / "src" / "rfdetr_hf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "tests" / "models").mkdir(parents=True)
    (tmp_path / "tests" / "models" / "test_a.py").touch()
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "train.py").write_text("from rfdetr_hf.training.trainer import RFDETRTrainer\n")
    found = {measure.name: measure.value for measure in house.measure(tmp_path)}
    assert found == {
        "private trainer attributes read elsewhere": 1,
        "trainer attributes read elsewhere": 1,
        "trainer attributes written elsewhere": 1,
        "places that are handed the trainer": 2,
        "import cycles of modules": 0,
        "import cycles of folders": 0,
        "imports against the directions": 2,
        "imports of examples below the top": 1,
        "tables by task outside tasks.py": 1,
        "modules without a test file of their name": 3,
        "calls from train to training_step": 2,
        "short private functions with one caller": 1,
        "functions over 60 lines": 1,
        "files over 600 lines": 0,
        "code lines": 84,
    }


def test_imports_in_a_circle_are_found_by_all_their_ways(tmp_path):
    house = load_script("tools/house.py")
    for name, text in {
        "__init__.py": "", "data/__init__.py": "", "evaluation/__init__.py": "",
        "data/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .b import x\n",
        "data/b.py": "def f():\n    from ..evaluation import c\n",
        "evaluation/c.py": "from importlib import import_module\nNAMES = ['a']\n"
        "def f(name):\n    return import_module(f'rfdetr_hf.data.{name}')\n",
    }.items():  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    modules = house.read(tmp_path)
    found = {each.name: each.found for each in house.import_measures(modules)}
    assert found["import cycles of modules"] == ["data.a <-> data.b <-> evaluation.c"]
    assert found["import cycles of folders"] == ["data <-> evaluation"]
