"""Options from YAML files and command lines."""

import argparse
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from ..options import IN_WORDS, OF_TEXTS, UsageError, kinds_of, load_yaml
from .help import format_help
from .idle import idle_options
from .words import aliases, explain

# Options of a file that say the same as one of the command line, which wins, or contradict it.
_SUPERSEDED = {
    "mixed_precision": ("bf16", "fp16"),
    "bf16": ("mixed_precision", "fp16"),
    "fp16": ("mixed_precision", "bf16"),
    "model_name_or_path": ("variant",),
    "variant": ("model_name_or_path",),
}
_TRUE, _FALSE = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")


def _truth(text: str) -> bool:
    if text.lower() not in (*_TRUE, *_FALSE):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false (yes, no, 1, 0)")
    return text.lower() in _TRUE


class _Parser(argparse.ArgumentParser):
    """Has an option for each field of dataclasses, and raises its complaints."""

    def __init__(self, dataclass_types: Sequence[type]) -> None:
        super().__init__(allow_abbrev=False, add_help=False)
        self.kinds: dict[str, list[Any]] = {}
        for cls in dataclass_types:
            hints = get_type_hints(cls)
            for each in dataclasses.fields(cls):
                self._add_field(each, hints[each.name])

    def _add_field(self, each: dataclasses.Field, hint: Any) -> None:
        words: dict[str, Any] = {"default": argparse.SUPPRESS, **each.metadata, "help": argparse.SUPPRESS}
        kinds = self.kinds[each.name] = [kind for kind in kinds_of(hint) if kind is not NoneType]
        if bool in kinds:
            words |= {"type": _truth, "nargs": "?", "const": True}
        elif list in kinds:
            inner = next(get_args(kind)[0] for kind in (hint, *get_args(hint)) if get_origin(kind) is list)
            words |= {"type": inner, "nargs": "+"}
        else:
            if dict in kinds:
                words.pop("choices", None)  # a mapping or a file may stand in their place
            words["type"] = (lambda text: _as_written(hint, text, text)) if str in kinds else kinds[0]
        self.add_argument(f"--{each.name}", **words)

    def error(self, message: str) -> NoReturn:
        takes_several = [action for action in self._actions if action.nargs == "+"]
        if any(f"--{action.dest}:" in message for action in takes_several):
            message += "; it takes all words up to the next option, so what belongs to the command stands before it"
        raise UsageError(message)


def parse_arguments(
    dataclass_types: Sequence[type],
    argv: Sequence[str],
    prog: str | None = None,
    description: str | None = None,
    positional: Mapping[str, str] | None = None,
    file: tuple[str, Mapping[str, Any]] | None = None,
) -> tuple[Any, ...]:
    """Parse plain words, options and `--config file.yaml` into one instance of each dataclass.

    What is given on the command line wins over the file. Words of other packages that mean the same are understood:
    `--epochs` is `--num_train_epochs`. `--help` prints the options of daily use, `--help_all` all of them.

    Args:
        dataclass_types: whose fields are the options.
        argv: words of the command line.
        prog: name of the command in its help.
        description: first paragraphs of its help.
        positional: fields that plain words give, in this order, with what the help calls them; one that takes a list
            takes all words that are left.
        file: a path, and the options that were read from it; default: those of `--config`.

    Raises:
        UsageError: for an option or a key of the file that no dataclass has, with what it is called here or the nearest
            name that exists, and for a value that a dataclass refuses.
        SystemExit: after the help.
    """
    try:
        known = [each.name for cls in dataclass_types for each in dataclasses.fields(cls)]
        parser, others, places = _Parser(dataclass_types), aliases(known), positional or {}
        words = _canonical(argv, parser, others)
        if asked := {"-h", "--help", "--help_all"} & set(words):
            complete = "--help_all" in asked
            print(format_help(dataclass_types, prog or "", description, places, others, complete), end="")
            raise SystemExit(0)
        words, path = _without_config(words)
        path, values = file or (path, read_options(path, dataclass_types) if path else {})
        first = next((n for n, word in enumerate(words) if word.startswith("-")), len(words))
        given, left = parser.parse_known_args(words[first:])
        placed = _placed([*words[:first], *left], places, parser)
        for name in placed:
            if hasattr(given, name):
                raise UsageError(f"--{name} and {places[name]} say the same; give one of them")
        typed = vars(given) | placed
        held = _not_superseded(values, typed)
        for cls in dataclass_types:
            before, now = (idle_options(cls, each) for each in (values, {**held, **typed}))
            held = {name: held[name] for name in held if name in before or name in typed or name not in now}
        return _build(dataclass_types, {**held, **typed}, values, path, places)
    except ValueError as error:
        raise error if isinstance(error, UsageError) else UsageError(str(error)) from error


def _not_superseded(values: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a file that hold beside those of the command line."""
    gone = {name for option in typed for name in _SUPERSEDED.get(option, ())} - {*typed}
    held = {name: value for name, value in values.items() if name not in gone}
    if isinstance(derived := values.get("derived"), dict):
        held["derived"] = {name: value for name, value in derived.items() if name not in typed}
    return held


def _canonical(argv: Sequence[str], parser: _Parser, others: Mapping[str, str]) -> list[str]:
    """The words with each option under its own name; a switch takes the next word only where that is true or false.

    Raises:
        UsageError: an option that does not exist, or an option and its alias.
    """
    words, written = [], dict[str, str]()
    for word, following in zip(argv, [*argv[1:], "-"], strict=False):
        if not word.startswith("--") or word == "--":
            if re.match(r"-[a-zA-Z]", word) and word != "-h":
                raise UsageError(f"unknown option {word!r} on the command line: options have two dashes and a name")
            words.append(word)
            continue
        option, equals, value = word[2:].partition("=")
        option = option.replace("-", "_")
        name = others.get(option, option)
        if option.startswith("no_") and name not in parser.kinds:
            name = f"no_{others.get(option[3:], option[3:])}"
        if written.setdefault(name, option) != option:
            raise UsageError(f"--{written[name]} and --{option} say the same; give one of them")
        if bool in parser.kinds.get(name, ()) and not equals and following.lower() not in (*_TRUE, *_FALSE):
            equals, value = "=", "true"
        elif bool in parser.kinds.get(name.removeprefix("no_"), ()) and name not in parser.kinds and not equals:
            name, equals, value = name.removeprefix("no_"), "=", "false"
        elif name not in (*parser.kinds, "config", "help", "help_all"):
            raise UsageError(_unknown_option(option, [*parser.kinds], "on the command line"))
        words.append(f"--{name}{equals}{value}")
    return words


def _without_config(words: Sequence[str]) -> tuple[list[str], str | None]:
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--config")
    try:
        given, left = early.parse_known_args(list(words))
    except argparse.ArgumentError as error:
        raise UsageError("--config needs the path of a YAML file") from error
    return left, given.config


def _placed(words: Sequence[str], places: Mapping[str, str], parser: _Parser) -> dict[str, Any]:
    """The fields that plain words give.

    Raises:
        UsageError: there are too many words.
    """
    left, placed = list(words), dict[str, Any]()
    for name in places if left else ():
        if not left:
            break
        placed[name], left = (left, []) if list in parser.kinds[name] else (left[0], left[1:])
    if left:
        name, equals, _ = left[0].partition("=")
        if equals and name.isidentifier():
            raise UsageError(f"{left[0]!r} on the command line: options are written --{left[0]}")
        rule = f"{', '.join(places.values())}, then options" if places else "options alone"
        raise UsageError(f"{left[0]!r} on the command line is one word too many: {rule}; join several values by commas")
    return placed


def _build(
    dataclass_types: Sequence[type],
    given: Mapping[str, Any],
    values: Mapping[str, Any],
    path: str | None,
    places: Mapping[str, str],
) -> tuple[Any, ...]:
    """The instances; a complaint about what the file says names the file."""
    missing = [
        each.name
        for cls in dataclass_types
        for each in dataclasses.fields(cls)
        if each.default is each.default_factory is dataclasses.MISSING and each.name not in given
    ]
    if missing:
        name = missing[0]
        raise UsageError(f"{places[name]} (--{name}) is missing" if name in places else f"--{name} is missing")
    empty = [name for name, value in given.items() if isinstance(value, str) and not value.strip()]
    if empty:
        source = f"{path}: " if empty[0] in values else ""
        raise UsageError(f"{source}{empty[0]} is an empty text; leave it out, or give a value")
    try:
        return tuple(
            cls(**{each.name: given[each.name] for each in dataclasses.fields(cls) if each.name in given})
            for cls in dataclass_types
        )
    except ValueError as error:
        named = any(re.search(rf"\b{name}\b", str(error)) for name in values)
        raise UsageError(f"{path}: {error}" if named else str(error)) from error


def read_options(path: str, dataclass_types: Sequence[type]) -> dict[str, Any]:
    """The options of a YAML file, each as its field wants it; texts are what is written, be it yes, 01 or 12:30.

    Aliases count as their options.

    Args:
        path: of the file.
        dataclass_types: whose fields the options are.

    Raises:
        UsageError: it is no YAML, no mapping, has a key twice or one that is no field, or a value of another type.
    """
    try:
        values, texts = load_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold a mapping of option names to values")
    hints = {name: hint for cls in dataclass_types for name, hint in get_type_hints(cls).items()}
    known = [f.name for cls in dataclass_types for f in dataclasses.fields(cls)]
    others, written, read = aliases(known), dict[str, str](), dict[str, Any]()
    for key, value in values.items():
        text = texts.get(key, value)  # a merged mapping has no text of its own
        name = others.get(key, key)
        if name not in known:
            raise UsageError(_unknown_option(str(key), known, f"in {path}"))
        if written.setdefault(name, key) != key:
            raise UsageError(f"{path}: {written[name]} and {key} say the same; give one of them")
        try:
            read[name] = _as_written(hints[name], text if name in OF_TEXTS and isinstance(value, dict) else value, text)
        except ValueError as error:
            raise UsageError(f"{path}: {key}: {str(text)[:80]!r} {error}") from error
    return read


def _as_written(hint: Any, value: Any, text: Any) -> Any:
    """A value of a YAML file for a field: numbers from numbers or their texts, texts as they are written."""
    kinds = kinds_of(hint)
    if value is None and NoneType in kinds or isinstance(value, dict) and dict in kinds:
        return value
    items = value if isinstance(value, list) else [value]
    texts = text if isinstance(text, list) else [text]
    if list in kinds and value is not None:
        inner = next(get_args(kind)[0] for kind in (hint, *get_args(hint)) if get_origin(kind) is list)
        return [_as_written(inner, *pair) for pair in zip(items, texts, strict=True)]
    scalar = not any(isinstance(each, (list, dict, NoneType)) for each in items)
    if str in kinds and scalar and items and not (int in kinds and str(text).isdecimal()):
        return ",".join(
            str(text).lower() if isinstance(v, bool) else str(text) for v, text in zip(items, texts, strict=True)
        )
    # Numbers from their texts as well: YAML takes 12:30 for 750 and 010 for 8.
    for kind, read in ((bool, _truth), (int, int), (float, float)):
        if kind in kinds and scalar and not isinstance(text, list):
            try:
                return read(str(text))
            except (ValueError, argparse.ArgumentTypeError):
                continue
    raise ValueError("must be " + " or ".join(IN_WORDS[kind] for kind in kinds))


def to_words(option: dataclasses.Field, value: Any) -> list[str]:
    """What `read_options` gives as words of the command line."""
    if isinstance(value, list):
        return [f"--{option.name}", *map(str, value)]
    return [f"--{option.name}={json.dumps(value) if isinstance(value, Mapping) else value}"]


def _unknown_option(name: str, known: Sequence[str], where: str) -> str:
    """The message for an option that does not exist."""
    hint = explain(name, known)
    return f"unknown option {name!r} {where}" + (f"; {hint}" if hint else "")
