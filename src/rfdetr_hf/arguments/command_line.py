"""Options from YAML files and command lines."""

import argparse
import dataclasses
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from ..options import IN_WORDS, UsageError, kinds_of, load_yaml

_TRUE, _FALSE = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")


def _truth(text: str) -> bool:
    if text.lower() not in (*_TRUE, *_FALSE):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false (yes, no, 1, 0)")
    return text.lower() in _TRUE


class _Parser(argparse.ArgumentParser):
    """Has an option for each field of dataclasses, takes it by its full name, and raises its complaints."""

    def __init__(self, dataclass_types: Sequence[type], **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Help, **options)
        for cls in dataclass_types:
            hints = get_type_hints(cls)
            for each in dataclasses.fields(cls):
                self._add_field(each, hints[each.name])

    def _add_field(self, each: dataclasses.Field, hint: Any) -> None:
        words: dict[str, Any] = dict(each.metadata)
        dashed = each.name.replace("_", "-")
        names = dict.fromkeys((f"--{each.name}", f"--{dashed}", *words.pop("aliases", ())))
        kinds = [kind for kind in kinds_of(hint) if kind is not NoneType]
        if each.default is not dataclasses.MISSING:
            words["default"] = each.default
        elif each.default_factory is not dataclasses.MISSING:
            words["default"] = each.default_factory()
        else:
            words["required"] = True
        if bool in kinds:
            words |= {"type": _truth} | ({} if each.default is None else {"nargs": "?", "const": True})
        elif list in kinds:
            inner = next(get_args(kind)[0] for kind in (hint, *get_args(hint)) if get_origin(kind) is list)
            words |= {"type": inner, "nargs": "+"}
        else:
            words["type"] = str if str in kinds else kinds[0]
        self.add_argument(*names, **words)
        if each.default is True:
            no = (f"--no_{each.name}", f"--no-{dashed}")
            self.add_argument(*no, action="store_false", dest=each.name, help=words["help"])

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
    parser = _Parser(dataclass_types, prog=prog, description=description)
    parser.add_argument("--config", help="YAML file of options.")
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config")
    config_path = early.parse_known_args(list(argv))[0].config
    values = read_options(config_path, dataclass_types) if config_path else {}
    parser.set_defaults(**values)
    for action in parser._actions:
        action.required = action.required and action.dest not in values
    given, unknown = parser.parse_known_args(list(argv))
    if unknown:
        if not unknown[0].startswith("-"):
            raise UsageError(f"{unknown[0]!r} on the command line belongs to no option; join several values by commas")
        known = [f.name for cls in dataclass_types for f in dataclasses.fields(cls)]
        raise UsageError(_unknown_option(unknown[0].lstrip("-").split("=")[0], known, "on the command line"))
    fields = [[each.name for each in dataclasses.fields(cls)] for cls in dataclass_types]
    try:
        return tuple(
            cls(**{name: getattr(given, name) for name in names})
            for cls, names in zip(dataclass_types, fields, strict=True)
        )
    except ValueError as error:
        named = any(re.search(rf"\b{name}\b", str(error)) for name in values)
        raise UsageError(f"{config_path}: {error}" if named else str(error)) from error


def read_options(path: str, dataclass_types: Sequence[type]) -> dict[str, Any]:
    """The options of a YAML file, each as its field wants it; texts are what is written, be it yes, 01 or 12:30.

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
    read = {}
    for key, value in values.items():
        text = texts.get(key, value)  # a merged mapping has no text of its own
        if key not in known:
            raise UsageError(_unknown_option(str(key), known, f"in {path}"))
        try:
            read[key] = _as_written(hints[key], value, text)
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
    if str in kinds and scalar:
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
    """The message for an option that does not exist, with the nearest that does."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"unknown option {name!r} {where}" + (f"; did you mean {near[0]!r}?" if near else "")
