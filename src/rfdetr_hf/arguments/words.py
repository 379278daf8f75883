"""The words of rfdetr, ultralytics and Transformers: which of them are understood, and what is said to the others.

A line of `words/<package>.txt` is `word sign targets | remark`. The sign "=" makes the word an alias: the same value
means the same. ">" names what does its work here, and "-" stands for nothing that does; the remark says how or why.
`args.`, `model_args.` and the like in front of a target name the dataclass that has it, `config.` and `backbone.` the
configuration of the model.
"""

import difflib
import functools
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

PACKAGES = ("rfdetr", "ultralytics", "transformers")
# What has the options with a prefix: a verb of the command, and a class.
OWNERS = {
    "args": ("fit", "RFDETRTrainingArguments"),
    "model_args": ("fit", "ModelArguments"),
    "data_args": ("fit", "DataArguments"),
    "launch_args": ("fit", "LaunchArguments"),
    "evaluate_args": ("evaluate", "EvaluateArguments"),
    "predict_args": ("predict", "PredictArguments"),
    "export_args": ("export", "ExportArguments"),
}
_LINE = re.compile(r"(\w+) ([=>-]) ?([^|]*?) *(?:\| (.*))?")
_PREFIX = re.compile(rf"\b(?:{'|'.join(OWNERS)})\.(?=\w)")
_NEAR = 0.8
# What the verbs for trained models call an option of the training.
_IN_VERBS = {
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "batch_size",
    "dataloader_num_workers": "num_workers",
    "resolution": "size",
}
T = TypeVar("T")


@dataclass(frozen=True)
class Word:
    """One word of another package.

    Attributes:
        name: the word.
        package: whose it is.
        section: of the file that it stands in.
        sign: see above.
        targets: names of what does its work here.
        remark: how values convert, or why there is no counterpart.
    """

    name: str
    package: str
    section: str
    sign: str
    targets: tuple[str, ...]
    remark: str


@functools.cache
def words_of(file: str) -> tuple[Word, ...]:
    """The lines of `words/<file>.txt`; in the file of the verbs a section is a package."""
    section, found = "", []
    for line in (Path(__file__).parent / "words" / f"{file}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            match = _LINE.fullmatch(line)
            if match is None:
                raise ValueError(f"words/{file}.txt: {line!r} is not 'word sign targets | remark'")
            targets = tuple(target.strip() for target in match[3].split(",") if target.strip())
            package = section if file == "verbs" else file
            found.append(Word(match[1], package, section, match[2], targets, match[4] or ""))
    return tuple(found)


def entries(name: str, files: Iterable[str] = PACKAGES) -> list[Word]:
    """What the packages call `name`; dashes are underscores."""
    name = name.replace("-", "_")
    return [word for file in files for word in words_of(file) if word.name == name]


def aliases(known: Collection[str]) -> dict[str, str]:
    """Words of other packages that mean one of the options `known`, each with that option.

    A word is none if it is an option itself, or another package means something else by it.
    """
    found: dict[str, str] = {}
    for word in (word for file in PACKAGES for word in words_of(file)):
        target = word.targets[0].rpartition(".")[2] if word.targets else ""
        target = _at_hand(target, known)
        same = all(each.sign == "=" and each.targets == word.targets for each in entries(word.name))
        if same and target in known and word.name not in known:
            found[word.name] = target
    return found


def explain(name: str, known: Collection[str], in_python: bool = False) -> str:
    """What to say about a name that is no option: what it is here, why it is not, or the nearest option.

    Args:
        name: what was given.
        known: the options that could have been meant.
        in_python: name classes instead of verbs.

    Returns:
        A clause that follows "unknown option ...", empty if nothing is known about it.
    """
    found: dict[str, list[str]] = {}
    for word in entries(name):
        text = f"is not here: {word.remark}"
        if word.targets:
            text = f"is {_named(word, known, in_python)} here" + (f" ({word.remark})" if word.remark else "")
        found.setdefault(_PREFIX.sub("", text), []).append(word.package)
    if found:
        return "; ".join(f"{name} of {' and '.join(packages)} {text}" for text, packages in found.items())
    by_alias = {} if in_python else aliases(known)
    near = difflib.get_close_matches(name.replace("-", "_"), [*known, *by_alias], n=1, cutoff=_NEAR)
    return f"did you mean {by_alias.get(near[0], near[0])!r}?" if near else ""


def _named(word: Word, known: Collection[str], in_python: bool) -> str:
    """The targets of a word, with the verb or class of those that are not at hand."""
    names: dict[str, list[str]] = {}
    for target in word.targets:
        owner, _, option = target.rpartition(".")
        option = _at_hand(option, known)
        of = ""
        if owner in ("config", "backbone"):
            of = " of RFDETRConfig" if in_python else " of config_overrides"
        elif owner in OWNERS and option not in known:
            verb, cls = OWNERS[owner]
            of = f" of {cls}" if in_python else f" of rfdetr-hf {verb}"
        names.setdefault(of, []).append(option if of or owner in OWNERS else target)
    return ", ".join(f"{', '.join(options)}{of}" for of, options in names.items())


def _at_hand(option: str, known: Collection[str]) -> str:
    """The option, or what the verb at hand calls it."""
    ours = _IN_VERBS.get(option, option)
    return ours if ours in known and option not in known else option


def explain_verb(name: str, verbs: Collection[str]) -> str:
    """What to say about a verb that does not exist."""
    for word in entries(name, ("verbs",)):
        remark = f" ({word.remark})" if word.remark and word.targets else word.remark
        here = f"is {' and '.join(word.targets)} here{remark}" if word.targets else f"is not here: {remark}"
        return f"{name} of {word.package} {here}"
    near = difflib.get_close_matches(name, verbs, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(verbs)}"


def answers_by_name(cls: type[T]) -> type[T]:
    """For a dataclass of options: a keyword that is no field raises a TypeError that says what it is here."""
    made = cls.__init__
    known = [each.name for each in fields(cls)]  # type: ignore[arg-type]

    @functools.wraps(made)
    def __init__(self: Any, *args: Any, **options: Any) -> None:
        for name in options:
            if name not in known:
                hint = explain(name, known, in_python=True)
                raise TypeError(f"{cls.__name__} has no option {name!r}" + (f": {hint}" if hint else ""))
        made(self, *args, **options)

    cls.__init__ = __init__
    return cls
