"""Options: fields of dataclasses that carry their help, choices and range; read from YAML files and command lines."""

import argparse
import dataclasses
import difflib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser


class UsageError(ValueError):
    """What was asked for cannot be understood: a misspelt option, a value out of its range, a broken YAML file."""


@dataclass(frozen=True)
class Range:
    """An interval of numbers; as a string it reads "at least 1", "positive", "in [0, 1)".

    Attributes:
        low, high: its ends.
        brackets: "[" or "]" for an end that belongs to it, "(" or ")" for one that does not.
    """

    low: float = -math.inf
    high: float = math.inf
    brackets: str = "[]"

    def __contains__(self, value: float) -> bool:
        above = value >= self.low if self.brackets[0] == "[" else value > self.low
        return above and (value <= self.high if self.brackets[1] == "]" else value < self.high)

    def __str__(self) -> str:
        if math.isfinite(self.high):
            return f"in {self.brackets[0]}{self.low:g}, {self.high:g}{self.brackets[1]}"
        if self.low == 0:
            return "zero or more" if self.brackets[0] == "[" else "positive"
        return f"at least {self.low:g}"


FROM_0, FROM_1, POSITIVE = Range(0), Range(1), Range(0, brackets="(]")
PROBABILITY, BELOW_1, FACTOR = Range(0, 1), Range(0, 1, "[)"), Range(0, 1, "(]")


class _HelpText(str):
    """What a field is for, with its range; all other metadata of a field goes to `ArgumentParser.add_argument`."""

    range: Range | None = None


def option(
    default: Any = ..., help: str = "", allowed: Range | Sequence[str] | None = None, **metadata: Any
) -> Any:
    """A field of a dataclass of options.

    Args:
        default: its value, or a function without arguments that makes it; `...` where the option is required.
        help: a sentence; a range is put behind it.
        allowed: the range of a number, or the words that a text may be; an option of None is never compared.
        metadata: further words for the parser: aliases, nargs, const.
    """
    limits = allowed if isinstance(allowed, Range) else None
    text = _HelpText(help if limits is None else f"{help.removesuffix('.')}; {limits}.")
    text.range = limits
    metadata |= {"help": text} | ({"choices": list(allowed)} if allowed and not isinstance(allowed, Range) else {})
    if default is ...:
        return field(metadata=metadata)
    return field(default_factory=default, metadata=metadata) if callable(default) else field(
        default=default, metadata=metadata
    )  # fmt: skip


_IN_WORDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list", dict: "a mapping",
    NoneType: "nothing",
}  # fmt: skip


def settle_options(options: Any) -> None:
    """Check each field of a dataclass by its type, choices and range; texts that mean mappings become mappings.

    Raises:
        ValueError: a field holds something else; the message names field, value and rule.
    """
    hints = get_type_hints(type(options))
    for each in dataclasses.fields(options):
        hint, value = hints[each.name], getattr(options, each.name)
        union = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        kinds = [get_origin(kind) or kind for kind in union]
        if isinstance(value, os.PathLike) and str in kinds:
            value = os.fspath(value)
        if isinstance(value, str) and dict in kinds:
            value = _read_mapping(each.name, value)
        setattr(options, each.name, value)
        if value is None and NoneType in kinds:
            continue
        limits: Any = getattr(each.metadata.get("help"), "range", None)
        choices: Any = each.metadata.get("choices")
        if not any(_is_a(value, kind) for kind in kinds) or limits and value not in limits:
            rule = " or ".join(_IN_WORDS[kind] for kind in kinds) + (f", {limits}" if limits else "")
            raise ValueError(f"{each.name}={value!r} is not valid: it must be {rule}")
        for word in (value if isinstance(value, list) else [value]) if choices else ():
            if word not in choices:
                raise ValueError(f"{each.name}={word!r} is not known; choose one of {', '.join(choices)}")


def _is_a(value: Any, kind: type) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is float:
        return isinstance(value, Real) and math.isfinite(value)
    return isinstance(value, {int: Integral, list: (list, tuple)}.get(kind, kind))


def _read_mapping(name: str, text: str) -> dict[str, Any]:
    """A mapping written as JSON or YAML, or the file that holds it."""
    written = text.lstrip().startswith(("{", "["))
    if not written and not Path(text).is_file():
        raise ValueError(f"{name}={text!r} is neither a mapping ({{...}}) nor a file")
    try:
        value = yaml.safe_load(text if written else Path(text).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} is not valid JSON or YAML: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name}: {text} must hold a mapping, and holds {type(value).__name__}")
    return value


class _Parser(HfArgumentParser):
    """Takes options by their full names, and raises its complaints."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside the options, and the description as it is written."""


def parse_arguments(
    dataclass_types: Sequence[type], argv: Sequence[str], prog: str | None = None, description: str | None = None
) -> tuple[Any, ...]:
    """Parse `--config file.yaml` and command-line options into one instance of each dataclass.

    Options given on the command line win over the file.

    Args:
        dataclass_types: whose fields are the options.
        argv: words of the command line.
        prog: name of the command in its help.
        description: first paragraphs of its help.

    Raises:
        UsageError: for an option or a key of the file that no dataclass has, with the nearest name that exists, and
            for a value that a dataclass refuses.
    """
    try:
        return _parse_arguments(dataclass_types, argv, prog, description)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _parse_arguments(
    dataclass_types: Sequence[type], argv: Sequence[str], prog: str | None, description: str | None
) -> tuple[Any, ...]:
    types: Any = dataclass_types
    parser = _Parser(types, prog=prog, description=description, allow_abbrev=False, formatter_class=_Help)
    parser.add_argument("--config", help="YAML file of options.")
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config")
    config_path = early.parse_known_args(list(argv))[0].config
    fields = {f.name: f for cls in dataclass_types for f in dataclasses.fields(cls)}
    from_file = read_options(config_path, list(fields)) if config_path else {}
    parser.set_defaults(**{key: None for key, value in from_file.items() if value is None})
    words = [word for key, value in from_file.items() if value is not None for word in to_words(fields[key], value)]
    *parsed, _, unknown = parser.parse_args_into_dataclasses(
        [*words, *argv], return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        if not unknown[0].startswith("-"):
            raise ValueError(f"{unknown[0]!r} on the command line belongs to no option; join several values by commas")
        name = unknown[0].lstrip("-").split("=")[0]
        raise ValueError(_unknown_option(name, list(fields), "on the command line"))
    return tuple(parsed)


def read_options(path: str, known: Sequence[str]) -> dict[str, Any]:
    """The options of a YAML file.

    Raises:
        UsageError: it is no YAML, no mapping, or has a key that is not among `known`.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold a mapping of option names to values")
    for key in values:
        if key not in known:
            raise UsageError(_unknown_option(str(key), known, f"in {path}"))
    return values


def to_words(option: dataclasses.Field, value: Any) -> list[str]:
    """An entry of a YAML file as words of the command line."""
    if value is False:  # how YAML reads a bare no or off
        value = next((word for word in ("no", "off") if word in option.metadata.get("choices", ())), value)
    if isinstance(value, Mapping):
        return [f"--{option.name}", json.dumps(value)]
    if isinstance(value, list):
        is_text = option.type in (str, str | None)
        return [f"--{option.name}", *([",".join(map(str, value))] if is_text else map(str, value))]
    return [f"--{option.name}", str(value)]


def _unknown_option(name: str, known: Sequence[str], where: str) -> str:
    """The message for an option that does not exist, with the nearest that does."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"unknown option {name!r} {where}" + (f"; did you mean {near[0]!r}?" if near else "")
