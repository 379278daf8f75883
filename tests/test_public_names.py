"""The list of public names, what type checkers see of it, and who else may name them."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rfdetr_hf

ROOT = Path(__file__).parents[1]
CONSUMER = """
from rfdetr_hf import RFDETRConfig, RFDETRForObjectDetection, RFDETRTrainer, RFDETRTrainingArguments
from rfdetr_hf import evaluate_detector, load_detection_dataset, load_detector

reveal_type(RFDETRConfig.from_variant("nano"))
reveal_type(load_detection_dataset("synthetic-shapes"))
reveal_type(load_detector("model"))
reveal_type(RFDETRTrainingArguments("out").learning_rate)
model = RFDETRForObjectDetection(RFDETRConfig.from_variant("nano"))
reveal_type(RFDETRTrainer(model, RFDETRTrainingArguments("out")).train())
RFDETRTrainer(1, nonsense=3)
"""


def test_every_name_of_the_list_is_there_and_nothing_else():
    for name in rfdetr_hf.__all__:
        assert getattr(rfdetr_hf, name) is not None
    assert dir(rfdetr_hf) == sorted(rfdetr_hf.__all__) and len(rfdetr_hf.__all__) == len(set(rfdetr_hf.__all__))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        rfdetr_hf.Nothing  # noqa: B018


def test_type_checkers_see_the_same_names_from_the_same_modules():
    tree = ast.parse(Path(rfdetr_hf.__file__).read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    found: dict[str, list[str]] = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom) and all(alias.name == alias.asname for alias in node.names)
        found.setdefault(node.module or "", []).extend(alias.name for alias in node.names)
    assert found == {module: list(names) for module, names in rfdetr_hf.PUBLIC_NAMES.items()}


def test_the_list_alone_imports_nothing_heavy():
    code = "import sys, rfdetr_hf; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_editor_sees_the_real_types(tmp_path):
    checker = shutil.which("pyright") or shutil.which("pyright", path=str(Path(sys.executable).parent))
    if checker is None:
        pytest.skip("needs pyright")
    (tmp_path / "consumer.py").write_text(CONSUMER)
    command = [checker, "--pythonpath", sys.executable, "consumer.py"]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    for kind in ("RFDETRConfig", "DatasetDict", "ImageDetector", "float", "TrainOutput"):
        assert f'is "{kind}"' in out, out
    assert 'No parameter named "nonsense"' in out and "unknown" not in out.lower(), out


STEPS = {
    "train.py": ("load_detection_dataset(", "from_pretrained(", "RFDETRTrainer(", ".train("),
    "evaluate.py": ("load_detection_dataset(", "load_detector(", "evaluate_detector("),
    "predict.py": ("load_detector(", "detect(", "draw_detections("),
}


@pytest.mark.parametrize("name", STEPS)
def test_an_example_shows_its_steps_by_public_names(name):
    text = (ROOT / "examples" / name).read_text(encoding="utf-8")
    tree = ast.parse(text)
    main = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    body = "\n".join(ast.unparse(node) for node in main.body)
    assert [step for step in STEPS[name] if step not in body] == []
    assert len(text.splitlines()) < 150
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and "rfdetr_hf" in ast.unparse(node):
            assert isinstance(node, ast.ImportFrom) and node.module == "rfdetr_hf", ast.unparse(node)
            assert {alias.name for alias in node.names} <= set(rfdetr_hf.__all__)
