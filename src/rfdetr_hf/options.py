"""Options: fields of dataclasses that carry their help, choices and range."""

import dataclasses
import difflib
import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from .choices import printable


class UsageError(ValueError):
    """What was asked for cannot be understood: a misspelt option, a value out of its range, a broken YAML file."""


def require_writable(path: str | os.PathLike[str], option: str, overwrite: bool | None = None) -> None:
    """Look whether a file can be written, before the work whose result goes there.

    Args:
        path: of the file; folders that are missing on the way to it are made when it is written.
        option: that gave it, for messages.
        overwrite: whether an existing file may be replaced; None where it never may.

    Raises:
        FileExistsError: there is one.
        OSError: a folder or a device has its name, or its folder cannot be made or written to.
    """
    target = Path(path).absolute()
    if target.is_dir():
        raise IsADirectoryError(f"--{option} {path} is a folder; choose another name")
    if os.path.lexists(target) and not overwrite:
        remedy = "" if overwrite is None else ", or replace it with --overwrite"
        raise FileExistsError(f"--{option} {path} exists; choose another name{remedy}")
    require_room(target, f"--{option} {path}")


def require_room(path: Path, named: str) -> None:
    """Look whether something new can be made at a place.

    Args:
        path: of what is made.
        named: starts the message.

    Raises:
        NotADirectoryError, PermissionError: the nearest folder on the way to it that is there is none, or is closed.
    """
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise NotADirectoryError(f"{named}: {folder} is no folder; choose another name")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{named}: {folder} cannot be written to; choose another folder")


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
        if self.low == -math.inf and math.isfinite(self.high):
            return f"at most {self.high:g}"
        if math.isfinite(self.high):
            return f"in {self.brackets[0]}{self.low:g}, {self.high:g}{self.brackets[1]}"
        if self.low == 0:
            return "zero or more" if self.brackets[0] == "[" else "positive"
        return f"at least {self.low:g}"


AT_MOST_1 = Range(high=1)
FROM_0, FROM_1, POSITIVE = Range(0), Range(1), Range(0, brackets="(]")
PROBABILITY, BELOW_1, FACTOR = Range(0, 1), Range(0, 1, "[)"), Range(0, 1, "(]")


class HelpText(str):
    """What a field is for, and what the command's help needs besides; the other metadata is `add_argument`'s.

    Attributes:
        range: of its numbers.
        group: of options in the help that begins with this field.
        daily: whether the short help shows it.
        no: what `--no_<name>` is for, where the field is true by default.
        words: what may stand in place of its numbers.
    """

    range: Range | None = None
    group: str | None = None
    daily: bool = False
    no: str = ""
    words: Sequence[str] = ()


def option(
    default: Any = ...,
    help: str = "",
    allowed: Range | Sequence[str] | None = None,
    *,
    group: str | None = None,
    daily: bool = False,
    no: str = "",
    words: Sequence[str] = (),
    **metadata: Any,
) -> Any:
    """A field of a dataclass of options.

    Args:
        default: its value, or a function without arguments that makes it; `...` where the option is required.
        help: a sentence; a range is put behind it.
        allowed: the range of a number, or the words that a text may be; an option of None is never compared.
        group: the title in the help of this field and of those that follow, up to the next title.
        daily: whether the short help shows it.
        no: what `--no_<name>` is for, where the default is true.
        words: what may stand in place of a number.
        metadata: further words for the parser: nargs, const.
    """
    limits = allowed if isinstance(allowed, Range) else None
    sentence = help if help.endswith("...") else help.removesuffix(".")
    rule = " or ".join(map(str, (limits, *words)))
    text = HelpText(help if limits is None else f"{sentence}; {rule}.")
    text.range, text.group, text.daily, text.no, text.words = limits, group, daily, no, words
    metadata |= {"help": text} | ({"choices": list(allowed)} if allowed and not isinstance(allowed, Range) else {})
    if default is ...:
        return field(metadata=metadata)
    return field(default_factory=default, metadata=metadata) if callable(default) else field(
        default=default, metadata=metadata
    )  # fmt: skip


# Also hf-token, accessToken, aws_secret_access_key, apiKeys; in an address ?token=… and ?X-Amz-Signature=….
_SECRET = re.compile(
    r"(?:^|[_-]|(?<=[a-z])(?=[A-Z]))(?i:(?:api|access|secret|private)?(?:token|key)|password|passwd|pwd|pass|passphrase"
    r"|secret|auth|authorization|bearer|cookie|pem|signature|credential|sig)(?P<many>s?)$"
)
# In a text: password=…, hub_token=… and "api_key": "…" of letters and digits, --hub_token …, Authorization: Bearer …,
# and key:…@bucket.
_SAID = (
    (r"""((?i:\b[\w-]*(?:password|passwd|secret)s?)(?:=["']?|["']:\s?["']))[^\s"'&;,<>()\[\]{}]{6,}""", r"\1..."),
    (r"""((?i:\b[\w-]*(?:token|api_?key|access_?key)s?)(?:=["']?|["']:\s?["']))(?=[\w.-]*[A-Za-z])(?=[\w.-]*\d)"""
     r"""[^\s"'&;,<>()\[\]{}]{6,}""", r"\1..."),
    (r"((?i:--[\w-]*(?:token|password|secret|key)\s|\bbearer\s|\bauthorization:?\s+basic\s))(?=\S*[A-Z0-9])[^\s\"',;]{6,}",
     r"\1..."),
    (r"""(?<![\w/:.-])[^\s:/@"'\\]{2,}:[^\s:/@"'\\]{8,}@(?=\w)""", "...@"),
)  # fmt: skip
# Of the Hub, whatever it stands behind: 34 signs in upper and lower case; a part of a path is a name.
_TOKEN = re.compile(r"(?<![A-Za-z0-9/\\])hf_(?=[a-z0-9]*[A-Z])[A-Za-z0-9]{30,}(?![A-Za-z0-9/\\])")
OF_TEXTS = {"rename_classes"}
"""Mappings of names to names: what stands there is a text, be it 1 or yes."""
# Mappings by the names of classes and of data sets, of which "key" may be one; no option holds a secret in them.
_BY_NAME = {"classes", "data_hash", "id2label", "keypoint_schema", "label2id", "rename_classes", "thresholds"}
_OF_A_SOURCE = {"name_or_path", "share", "classes", "prefix", "splits", "sampling"}
IN_WORDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list", dict: "a mapping",
    NoneType: "null",
}  # fmt: skip


def settle_options(options: Any) -> None:
    """Check each field of a dataclass by its type, choices and range; texts that mean mappings become mappings.

    Raises:
        ValueError: a field holds something else; the message names field, value and rule.
    """
    hints = get_type_hints(type(options))
    for each in dataclasses.fields(options):
        hint, value = hints[each.name], getattr(options, each.name)
        kinds = kinds_of(hint)
        if isinstance(value, os.PathLike) and str in kinds:
            value = os.fspath(value)
        choices: Any = each.metadata.get("choices")
        if isinstance(value, str) and dict in kinds and value not in (choices or ()):
            value = _read_mapping(each.name, value, choices or ())
        words = getattr(each.metadata.get("help"), "words", ())
        setattr(options, each.name, value)
        if words and value in words or value is None and NoneType in kinds or isinstance(value, dict) and dict in kinds:
            continue
        limits: Any = getattr(each.metadata.get("help"), "range", None)
        kinds = [kind for kind in kinds if kind is not str] if words else kinds
        if not any(_is_a(value, kind) for kind in kinds) or limits and value not in limits:
            rule = " or ".join(IN_WORDS[kind] for kind in kinds) + (f", {limits}" if limits else "")
            rule += "".join(f", or {word}" for word in words)
            value = without_secrets(value) if each.repr else "..."
            raise ValueError(f"{each.name}={value!r} is not valid: it must be {rule}")
        for word in (value if isinstance(value, list) else [value]) if choices else ():
            if word not in choices:
                raise ValueError(f"{each.name}={word!r} is not known; choose one of {', '.join(choices)}")


def _is_a(value: Any, kind: type) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is int:
        return isinstance(value, Integral) and abs(int(value)) < 2**63
    if kind is float:
        number: Any = value
        return isinstance(value, Real) and bool(abs(number) <= sys.float_info.max)
    return isinstance(value, (list, tuple) if kind is list else kind)


def kinds_of(hint: Any) -> list[Any]:
    """The types that a field may have."""
    union = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return [get_origin(kind) or kind for kind in union]


def without_secrets(values: Any) -> Any:
    """A copy of nested values for files, trackers and the screen: tokens, keys and passwords are None.

    What makes a secret is its name, such as hub_token or api_key; in an address what stands before
    an "@" or behind such a name. A token of the Hub is one wherever it stands. Names of
    classes, as in `rename_classes`, and of sources with fields of their own, are no such names.
    """
    if isinstance(values, Mapping):
        found: dict[Any, Any] = {}
        for name, value in values.items():
            of_a_source = isinstance(value, Mapping) and not _OF_A_SOURCE.isdisjoint(value)
            key = without_secrets(name) if isinstance(name, str) else name
            if name in _BY_NAME and isinstance(value, Mapping):
                found[key] = dict(value)
            elif name == "sources" and isinstance(value, Mapping):
                found[key] = {without_secrets(own): without_secrets(of_it) for own, of_it in value.items()}
            else:
                secret = None if of_a_source or isinstance(value, bool) else _SECRET.search(str(name))
                is_number = isinstance(value, (int, float))  # Such as num_register_tokens.
                found[key] = None if secret and not (secret["many"] and is_number) else without_secrets(value)
        return found
    if isinstance(values, (list, tuple)):
        return [without_secrets(value) for value in values]
    if not isinstance(values, str):
        return values
    text = re.sub(r"://[^/?#\s]*@", "://", _TOKEN.sub("...", values))
    for pattern, instead in _SAID:
        text = re.sub(pattern, instead, text)
    if "://" in text:
        words = re.split(r"([?&#;\s<>\"])", text)
        text = "".join(f"{w.split('=')[0]}=..." if "=" in w and _SECRET.search(w.split("=")[0]) else w for w in words)
    return text


def message_text(text: object) -> str:
    """A message for a terminal, a log or a status: without secrets, with a sign for each terminal code.

    All lines but the first are indented, so that no name in a message makes a line of its own.
    """
    first, *others = (printable(line) for line in without_secrets(str(text)).split("\n"))
    return "\n".join([first, *(line if line.startswith(" ") or not line else f"  {line}" for line in others)])


def shown(options: Any) -> str:
    """A dataclass of options as `repr` shows it, without secrets."""
    values = without_secrets(
        {each.name: getattr(options, each.name) for each in dataclasses.fields(options) if each.repr}
    )
    return f"{type(options).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"


def word_without_secrets(word: str, option: str = "") -> str:
    """A word of a command line: in an address, and in a mapping that is written out, secrets are left out.

    Args:
        word: the value of an option, or any other word.
        option: the name whose value it is, as Python writes it.
    """
    if not word.lstrip().startswith("{"):
        return str(without_secrets(word))
    try:
        value, _ = load_yaml(word)
    except ValueError:
        return "..."
    blank = without_secrets({option: value})[option]
    return word if blank == value else json.dumps(blank)


def _read_mapping(name: str, text: str, words: Sequence[str] = ()) -> dict[str, Any]:
    """A mapping written as JSON or YAML, or the file that holds it; `words` may stand in its place."""
    written = text.lstrip().startswith(("{", "["))
    if not written and not Path(text).is_file():
        near = difflib.get_close_matches(text, words, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; choose one of {', '.join(words)}" if words else ""
        raise ValueError(f"{name}={text!r} is neither a mapping ({{...}}) nor a file{hint}")
    try:
        value, texts = load_yaml(text if written else Path(text).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{name} is not valid JSON or YAML: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} must hold a mapping, and holds {type(value).__name__}")
    return texts if name in OF_TEXTS else value


class _Loader(yaml.SafeLoader):
    """Keys are texts, as in JSON, and so are numbers: 1e-6 is one, which YAML 1.1 takes for a text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: a text that looks like a number stands between quotes."""


_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
for _each in (_Loader, _Dumper):
    _each.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = next((name for n, name in enumerate(names) if name in names[:n]), None)
    if twice is not None:
        raise UsageError(f"{twice!r} stands there twice")
    return dict(pairs)


def load_yaml(text: str) -> tuple[Any, Any]:
    """A document in YAML or JSON by the types of its values, and with each value as the text that is written.

    Raises:
        ValueError: it is not valid, too deep, or has a key twice.
    """
    try:
        # Not all JSON is YAML: tabs, pairs of surrogates.
        as_texts: Any = dict.fromkeys(("parse_int", "parse_float", "parse_constant"), str)
        return json.loads(text, object_pairs_hook=_once), json.loads(text, object_pairs_hook=_once, **as_texts)
    except (json.JSONDecodeError, RecursionError):
        pass
    try:
        nodes, seen = [yaml.compose(text, Loader=yaml.SafeLoader)], set()
        while nodes:
            node = nodes.pop()
            if node is None or id(node) in seen or isinstance(node, yaml.ScalarNode):
                continue
            seen.add(id(node))
            if isinstance(node, yaml.MappingNode):
                keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
                twice = next((key for n, key in enumerate(keys) if key in keys[:n]), None)
                if twice is not None:
                    raise ValueError(f"{twice!r} stands there twice")
                nodes += [value for _, value in node.value]
            elif isinstance(node, yaml.SequenceNode):
                nodes += node.value
        return yaml.load(text, Loader=_Loader), yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:  # Its own message shows the text around, secrets too.
        mark: Any = error.problem_mark or error.context_mark
        raise ValueError(f"{error.problem}, in line {mark.line + 1}, column {mark.column + 1}") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except (RecursionError, OverflowError, TypeError) as error:
        raise ValueError(f"a value that YAML cannot hold ({error})") from error


def to_yaml(sections: Mapping[str, Mapping[str, Any]], facts: Sequence[str] = ()) -> str:
    """Options as a YAML file that `read_options` reads back: a comment and the values of each section.

    Args:
        sections: the values of options by the title of their section.
        facts: comments at the head of the file, a line each.
    """
    parts = ["".join(f"# {' '.join(str(fact).split())}\n" for fact in facts)]
    parts += [
        f"# {title}\n{yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)}"
        for title, values in sections.items()
    ]
    return "\n".join(part for part in parts if part)
