"""The help of every verb: widths, groups, the options of daily use."""

import dataclasses
import re

import pytest

from rfdetr_hf import RFDETRTrainingArguments
from rfdetr_hf.arguments.help import GROUPS, groups_of
from rfdetr_hf.cli.fit import TYPES
from rfdetr_hf.cli.main import VERBS, main

# Groups of the complete help of each verb.
COUNTS = {
    "fit": 12, "config": 12, "data preview": 13, "data audit": 4, "evaluate": 3, "validate": 1, "test": 1, "predict": 4,
    "data convert": 1,
}  # fmt: skip


def help_of(verb, option, capsys):
    assert main([*verb.split(), option]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_widths_groups_and_the_options_of_daily_use(verb, capsys):
    short, complete = (help_of(verb, option, capsys) for option in ("--help", "--help_all"))
    assert max(map(len, [*short.splitlines(), *complete.splitlines()])) < 80
    titles = re.findall(r"^([\w-]+):$", complete, re.M)
    groups = [title for title in titles if title in GROUPS]
    assert groups == [name for name in GROUPS if name in groups] and len(groups) == COUNTS.get(verb, 0)
    daily = re.search(r"^options(?: of daily use)?:\n(.*?)(?:\n\n|\Z)", short, re.S | re.M)
    assert daily is not None and 1 <= len(re.findall(r"^  \S", daily[1], re.M)) <= 12
    assert daily[0].strip() in complete and (short == complete) == ("--help_all" not in short)
    entries = re.findall(r"^  (--\w+|[A-Z]+(?:\.\.\.)?)(?= |$)", complete, re.M)
    assert len(entries) == len(set(entries)), "each option once"


def test_the_short_help_of_fit_has_twelve_options_and_the_long_one_all(capsys):
    short, complete = (help_of("fit", option, capsys) for option in ("--help", "--help_all"))
    assert len(re.findall(r"^  (?:--\w+|DATA)\b", short[short.index("options") :], re.M)) == 12
    for each in (each for cls in TYPES for each in dataclasses.fields(cls)):
        assert f"--{each.name}" in complete, each.name
    names = [each.name for fields in groups_of(TYPES).values() for each in fields]
    assert set(groups_of(TYPES)) <= set(GROUPS) and len(names) == len(set(names))


def test_what_is_on_by_default_says_what_its_opposite_does(capsys):
    complete = help_of("fit", "--help_all", capsys)
    for each in dataclasses.fields(RFDETRTrainingArguments):
        if each.default is True:
            text = each.metadata["help"]
            assert text.no and text.no != text and f"  --no_{each.name}" in complete, each.name


def test_dashes_negations_and_switches_before_words(capsys):
    from rfdetr_hf import parse_arguments

    argv = ["--push-to-hub", "my/data", "--no-use-ema", "--tf32", "false", "--async_save=yes"]
    _, data, training, _ = parse_arguments(TYPES, argv, positional={"dataset_name": "DATA"})
    assert (data.dataset_name, training.push_to_hub, training.use_ema) == ("my/data", True, False)
    assert (training.tf32, training.async_save) == (False, True)
