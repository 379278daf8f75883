"""Every code block of the documents: Python is run, commands are parsed, YAML is read as options."""

import argparse
import importlib
import importlib.util

import pytest
from helpers.documents import Block, blocks, commands, documents
from helpers.scripts import ROOT, load_script

from rfdetr_hf import DataArguments, ModelArguments, RFDETRTrainingArguments, parse_arguments
from rfdetr_hf.cli.main import VERBS


class Parsed(Exception):
    """The arguments are fine; nothing else is to happen."""


def parse_only(*args, **kwargs):
    parse_arguments(*args, **kwargs)
    raise Parsed


def check_script(path, argv, monkeypatch):
    """Parse a script's arguments with its own parser; unknown options and missing files are errors."""
    module = load_script(path)
    if hasattr(module, "parse_arguments"):
        monkeypatch.setattr(module, "parse_arguments", parse_only)
        with pytest.raises(Parsed):
            module.main(argv)
    elif hasattr(module, "add_arguments"):
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        parser.parse_args(argv)
    else:
        assert not argv, f"the options of {path} cannot be checked"


def check_verb(argv, monkeypatch):
    """Parse the arguments of one verb of the `rfdetr-hf` command."""
    verb = next(verb for verb in VERBS if argv[: verb.count(" ") + 1] == verb.split())
    rest = argv[verb.count(" ") + 1 :]
    # What a run leaves stands for any file of options.
    rest = ["examples/configs/quickstart.yaml" if word.endswith("/args.yaml") else word for word in rest]
    module = importlib.import_module(f"rfdetr_hf.cli.{verb.replace(' ', '_')}")
    for name in (*VERBS, "trained"):
        each = importlib.import_module(f"rfdetr_hf.cli.{name.replace(' ', '_')}")
        monkeypatch.setattr(each, "parse_arguments", parse_only, raising=False)
    with pytest.raises(Parsed):
        module.main(rest)


def check_command(words, monkeypatch):
    words = [word for word in words if not (word.isupper() and "=" in word)]
    while words and "=" in words[0] and words[0].split("=")[0].isupper():
        words = words[1:]
    if words[0].endswith("rfdetr-hf"):
        return check_verb(words[1:], monkeypatch)
    if "rfdetr_hf.cli" in words:
        return check_verb(words[words.index("rfdetr_hf.cli") + 1 :], monkeypatch)
    for place, word in enumerate(words):
        if word.endswith(".py") and "/" in word:
            return check_script(word, words[place + 1 :], monkeypatch)
        if word.startswith("examples/"):
            assert (ROOT / word).exists(), f"{word} does not exist"
    return None


def named(document, *languages):
    return [pytest.param(block, id=f"{document}:{block.line}") for block in blocks(document, *languages)]


@pytest.mark.parametrize("document", [d for d in documents() if blocks(d, "python")])
def test_python_blocks(document, workplace):
    """The Python blocks of a document run one after the other and share their names."""
    namespace = {"__name__": "__main__"}
    for block in blocks(document, "python"):
        if all(importlib.util.find_spec(name) for name in block.needs):
            code = "\n" * block.line + block.text
            exec(compile(code, str(ROOT / document), "exec"), namespace)


@pytest.mark.parametrize("block", [p for d in documents() for p in named(d, "bash")])
def test_bash_blocks(block: Block, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(block):
        check_command(words, monkeypatch)


@pytest.mark.parametrize("block", named("README.md", "bash"))
def test_accelerate_has_nothing_to_ask(block: Block):
    """Without a file it warns of each value that it chooses itself."""
    launches = [words for words in commands(block) if "accelerate" in "".join(words[:1]) and "launch" in words]
    assert all("--config_file" in words for words in launches)


@pytest.mark.parametrize("block", [p for d in documents() for p in named(d, "yaml")])
def test_yaml_blocks(block: Block, tmp_path):
    """The options of a block are valid, one by one and together."""
    file = tmp_path / "block.yaml"
    file.write_text(block.text)
    parse_arguments((ModelArguments, DataArguments, RFDETRTrainingArguments), ["--config", str(file)])


def test_the_checks_can_fail(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match="unknown option 'epochen'"):
        check_command(["python", "examples/train.py", "--epochen", "3"], monkeypatch)
    with pytest.raises(AssertionError, match="does not exist"):
        check_command(["accelerate", "launch", "examples/trainer.py"], monkeypatch)
    with pytest.raises(ValueError, match="No such file"):
        check_command(["python", "examples/train.py", "--config", "examples/configs/none.yaml"], monkeypatch)
    block = Block("bash", "a b && c \\\n  d # remark\n", 1, ())
    assert commands(block) == [["a", "b"], ["c", "d"]]
