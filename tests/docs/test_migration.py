"""The migration table covers the official API, and names what exists here."""

import dataclasses
import importlib
import re

import pytest
import transformers
from helpers.scripts import ROOT, load_script

import rfdetr_hf
from rfdetr_hf.arguments.words import words_of

PAGE = (ROOT / "docs" / "migration" / "from_rfdetr.md").read_text(encoding="utf-8")
OWNERS = {
    "args": rfdetr_hf.RFDETRTrainingArguments,
    "data_args": rfdetr_hf.DataArguments,
    "model_args": rfdetr_hf.ModelArguments,
    "launch_args": rfdetr_hf.LaunchArguments,
    "evaluate_args": rfdetr_hf.EvaluateArguments,
    "predict_args": rfdetr_hf.PredictArguments,
    "export_args": rfdetr_hf.ExportArguments,
    "config": rfdetr_hf.RFDETRConfig,
    "backbone": rfdetr_hf.RFDETRBackboneConfig,
    "model": rfdetr_hf.RFDETRForObjectDetection,
    "trainer": rfdetr_hf.RFDETRTrainer,
}
TRAINING_API = """
RFDETRModelModule RFDETRModelModule.on_fit_start RFDETRModelModule.on_train_batch_start RFDETRModelModule.training_step
RFDETRModelModule.validation_step RFDETRModelModule.test_step RFDETRModelModule.predict_step
RFDETRModelModule.configure_optimizers RFDETRModelModule.clip_gradients RFDETRModelModule.on_load_checkpoint
RFDETRDataModule RFDETRDataModule.class_names RFDETRDataModule.setup RFDETRDataModule.train_dataloader
RFDETRDataModule.val_dataloader RFDETRDataModule.test_dataloader build_trainer RFDETREMACallback BestModelCallback
RFDETREarlyStopping DropPathCallback COCOEvalCallback RFDETRCli
""".split()


def rows(title):
    section = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", PAGE, re.S | re.M)[1]
    table = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]


SECTIONS = re.findall(r"^## (.+)$", PAGE, re.M)[1:]
ALL = [row for title in SECTIONS for row in rows(title)]


def has(owner, name):
    fields = {field.name for field in dataclasses.fields(owner)} if dataclasses.is_dataclass(owner) else set()
    return name in fields or hasattr(owner, name) or name in owner.__init__.__code__.co_varnames


def exists(name):
    """Whether a code span of the column "here" is the name of something."""
    first, *rest = name.split(".")
    if "/" in name:
        return (ROOT / name).is_file()
    if name.startswith("rfdetr-hf "):
        verb = name.removeprefix("rfdetr-hf ").partition(" --")[0].replace(" ", "_")
        return importlib.util.find_spec(f"rfdetr_hf.cli.{verb}") is not None
    if first in OWNERS:
        return len(rest) == 1 and has(OWNERS[first], rest[0])
    if first == "rfdetr_hf":
        module, attribute = name.rsplit(".", 1)
        return hasattr(importlib.import_module(module), attribute)
    if first == "transformers":
        return has(getattr(transformers, rest[0]), rest[1])
    return first in rfdetr_hf.__all__ and all(hasattr(getattr(rfdetr_hf, first), each) for each in rest)


@pytest.mark.parametrize("row", ALL, ids=[row[0].strip("`") for row in ALL])
def test_what_a_row_names_exists(row):
    official, here, remark = row
    names = re.findall(r"`([^`]+)`", here)
    assert names or (here == "–" and remark), f"{official}: name a counterpart, or say why there is none"
    for name in names:
        assert exists(name), f"{official}: {name} does not exist"


def test_options_in_remarks_exist():
    for _, _, remark in ALL:
        for name in re.findall(r"`((?:args|config|backbone|data_args|model_args)\.(?!json)\w+)`", remark):
            assert exists(name), name


def test_the_official_training_api_is_covered():
    assert {re.sub(r"\(.*", "", row[0].strip("`")) for row in rows("Training API")} == set(TRAINING_API)


@pytest.mark.parametrize(("page", "tables"), [("rfdetr", 2), ("ultralytics", 8), ("transformers_trainer", 2)])
def test_the_tables_of_words_are_those_of_the_command(page, tables):
    """`python docs/make_words.py` writes them."""
    text = (ROOT / "docs" / "migration" / f"from_{page}.md").read_text(encoding="utf-8")
    assert text.count("<!-- words: ") == text.count("<!-- end -->") == tables
    assert load_script("docs/make_words.py").page_with_tables(text) == text
    file = page.removesuffix("_trainer")
    assert all(f"| `{word.name}` |" in text for word in words_of(file))


def test_the_check_can_fail():
    wrong = ("args.epochs", "rfdetr_hf.Nothing", "tools/none.py", "Nothing", "model.nothing")
    assert not any(exists(name) for name in wrong)
