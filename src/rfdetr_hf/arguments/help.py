"""The help of a verb: the options of daily use, or all of them in groups; at most 79 columns wide."""

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType
from typing import Any, get_type_hints

from ..options import HelpText, kinds_of

# The order of the groups; fields name the one that begins with them.
GROUPS = (
    "data", "model", "schedule", "optimizer", "fine-tuning", "EMA", "augmentation", "evaluation", "views", "output",
    "saving", "logging", "hub", "system",
)  # fmt: skip
WIDTH, _INDENT = 79, 26
_VALUES = {bool: "", int: " N", float: " X", str: " TEXT", dict: " JSON", list: " ..."}


def groups_of(dataclass_types: Sequence[type]) -> dict[str, list[dataclasses.Field]]:
    """The fields by the group that they belong to, in the order of the groups."""
    found: dict[str, list[dataclasses.Field]] = {name: [] for name in GROUPS}
    for cls in dataclass_types:
        group = "options"
        for each in dataclasses.fields(cls):
            group = getattr(each.metadata.get("help"), "group", None) or group
            found.setdefault(group, []).append(each)
    return {name: fields for name, fields in found.items() if fields}


def format_help(
    dataclass_types: Sequence[type],
    prog: str,
    description: str | None,
    positional: Mapping[str, str],
    aliases: Mapping[str, str],
    complete: bool,
) -> str:
    """The help of a command.

    Args:
        dataclass_types: whose fields are the options.
        prog: name of the command.
        description: first paragraphs.
        positional: fields that may be given as plain words, with the name of the word.
        aliases: other names of fields.
        complete: all options instead of those of daily use.
    """
    groups = groups_of(dataclass_types)
    kinds = {name: kinds_of(hint) for cls in dataclass_types for name, hint in get_type_hints(cls).items()}

    def entry(each: dataclasses.Field) -> Iterator[str]:
        others = [f"--{name}" for name, field in aliases.items() if field == each.name]
        yield from _entry(each, kinds[each.name], positional.get(each.name), others)

    every = [each for fields in groups.values() for each in fields]
    daily = [each for each in every if getattr(each.metadata.get("help"), "daily", False)] or every
    daily.sort(key=lambda each: [*positional, each.name].index(each.name))
    needed = [each.name for each in every if _default_of(each) is ...]
    usage = " ".join(word if name in needed else f"[{word}]" for name, word in positional.items())
    lines = [f"usage: {' '.join(part for part in (prog, usage, '[options]') if part)}", ""]
    lines += [*(description or "").strip().splitlines(), ""] if description else []
    rest = len(every) - len(daily)
    lines += ["options of daily use:" if rest else "options:"]
    config = _row("--config FILE", "YAML file of options; the command line wins over it.")
    lines += [*(line for each in daily for line in entry(each)), *config]
    for name, fields in groups.items() if complete else ():
        more = [each for each in fields if each not in daily]
        lines += ["", f"{name}:", *(line for each in more for line in entry(each))] if more else []
    if rest and not complete:
        names = ", ".join(name for name, fields in groups.items() if any(each not in daily for each in fields))
        lines += ["", *textwrap.wrap(f"{rest} more options of {names}: {prog} --help_all", WIDTH)]
    return "\n".join(lines) + "\n"


def _default_of(each: dataclasses.Field) -> Any:
    """The default of a field; `...` if it must be given."""
    if each.default_factory is not dataclasses.MISSING:
        return each.default_factory()
    return ... if each.default is dataclasses.MISSING else each.default


def _entry(each: dataclasses.Field, kinds: Sequence[Any], word: str | None, others: Sequence[str]) -> Iterator[str]:
    """The lines of an option; one that is true by default has a second entry for its opposite."""
    text, default, choices = each.metadata.get("help", ""), _default_of(each), each.metadata.get("choices")
    name = f"--{each.name}{next((_VALUES[kind] for kind in kinds if kind is not NoneType), '')}"
    if choices and len(",".join(choices)) < WIDTH - _INDENT:
        name = f"--{each.name} {'{' + ','.join(choices) + '}'}"
    elif choices:
        text += f" One of {', '.join(choices)}."
    names = [f"--{each.name}", *others] if word else others
    text += f" Also {', '.join(names)}." if names else ""
    if default not in (..., None, "", []) and default is not False and "efault" not in text:
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        shown = "on" if default is True else f"{shown:g}" if isinstance(shown, float) else shown
        text += f" Default: {shown}."
    yield from _row(word or name, text)
    if default is True and isinstance(each.metadata.get("help"), HelpText):
        yield from _row(f"--no_{each.name}", each.metadata["help"].no)


def _row(name: str, text: str) -> Iterator[str]:
    lines = textwrap.wrap(text, WIDTH - _INDENT, break_on_hyphens=False)
    start = f"  {name}"
    if len(start) > _INDENT - 2:
        yield start
        start = ""
    yield f"{start:<{_INDENT}}{lines[0] if lines else ''}".rstrip()
    yield from (f"{'':<{_INDENT}}{line}" for line in lines[1:])
