"""Imports point one way, as docs/design/architecture.md says; imports in functions and for types count too."""

import ast
import re
from pathlib import Path

import pytest
from helpers.scripts import ROOT

import rfdetr_hf

PACKAGE = ROOT / "src" / "rfdetr_hf"
PAGE = (ROOT / "docs" / "design" / "architecture.md").read_text(encoding="utf-8")
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
SCRIPTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").glob("*.py"))


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def allowed_imports() -> dict[str, set[str]]:
    """What each folder may import, from the table of the page."""
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|$", section("What each folder may import"), re.M)
    return {folder: set(re.findall(r"`(\w+)`", targets)) for folder, targets in rows}


def imports(source: str, module: str) -> set[tuple[str, ...]]:
    """The places in the package that a module imports from, as paths: ("data", "schema", "class_names").

    Args:
        source: of the module.
        module: its path from the package, as data/schema.py; "" for a file outside.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
            found |= {name[1:] for name in names if name[0] == "rfdetr_hf"}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = Path(module).parts[: -node.level]
            elif (node.module or "").split(".")[0] == "rfdetr_hf":
                base, node.module = (), ".".join(node.module.split(".")[1:])
            else:
                continue
            path = (*base, *(node.module or "").split(".")) if node.module else tuple(base)
            found |= {(*path, alias.name) for alias in node.names}
    return found


def wrong_imports(source: str, module: str) -> list[str]:
    """The imports of a module that the table does not allow."""
    folder = Path(module).parts[0].removesuffix(".py") if module else "cli"
    wrong = []
    for target in imports(source, module):
        public = len(target) == 1 and (target[0] in rfdetr_hf.__all__ or target == ("__version__",))
        fine = public if folder == "cli" else target and target[0] in allowed_imports()[folder]
        if not fine and target[:1] != (folder,):
            wrong.append(".".join(target))
    return sorted(wrong)


@pytest.mark.parametrize("module", [module for module in MODULES if module != "__init__.py"])
def test_a_module_imports_what_its_folder_may(module):
    assert wrong_imports((PACKAGE / module).read_text(encoding="utf-8"), module) == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_examples_import_public_names(script):
    assert wrong_imports((ROOT / script).read_text(encoding="utf-8"), "") == []


def test_the_table_has_every_folder():
    folders = {Path(module).parts[0].removesuffix(".py") for module in MODULES}
    assert set(allowed_imports()) == folders - {"__init__"}


def test_no_two_folders_import_each_other():
    """By the table, so by every module."""
    table = {folder: targets & set(allowed_imports()) for folder, targets in allowed_imports().items()}
    while table:
        free = {folder for folder, targets in table.items() if not targets & set(table)}
        assert free, f"a cycle among {sorted(table)}"
        table = {folder: targets for folder, targets in table.items() if folder not in free}


def test_every_file_that_the_page_names_exists():
    named = re.findall(r"`([\w/]+(?:\.py|\.md|/))`", PAGE)
    places = (PACKAGE, PACKAGE / "training", PACKAGE / "data/formats/yolo", ROOT)
    rows = re.findall(r"^\| `([\w/]+)/` \| [^|]+ \| (.+) \|$", section("The map"), re.M)
    listed = [f"{folder}/{name}" for folder, names in rows for name in re.findall(r"`(\w+\.py)`", names)]
    in_rows = {name for _, names in rows for name in re.findall(r"`(\w+\.py)`", names)}
    others = [name for name in named if name not in in_rows or "/" in name]
    optional = {"best/", "last/", "set-aside/"}
    missing = [n for n in others if n not in optional and not any((place / n).exists() for place in places)]
    assert sorted({*missing, *(name for name in listed if not (PACKAGE / name).is_file())}) == []


def test_the_checks_can_fail():
    assert wrong_imports("def f():\n    from ..training.ema import x", "models/backbone.py") == ["training.ema.x"]
    assert wrong_imports("from .. import training", "data/schema.py") == ["training"]
    assert wrong_imports("import rfdetr_hf.data.schema", "losses/boxes.py") == ["data.schema"]
    assert wrong_imports("from rfdetr_hf.data.schema import class_names", "") == ["data.schema.class_names"]
    assert wrong_imports("from ..data.schema import x\nfrom .. import class_names", "cli/fit.py") == ["data.schema.x"]
    assert wrong_imports("from ...tasks import TASKS\nfrom .official import y", "models/files/auto.py") == []
