"""Write docs/reference/api.md from the docstrings of the public names: python docs/make_api.py"""

import dataclasses
import inspect
import re
import sys
from enum import Enum
from pathlib import Path
from typing import Any

import rfdetr_hf

PAGE = Path(__file__).parent / "reference" / "api.md"

TITLES = {
    "models": "Models",
    "losses": "Losses",
    "data": "Data",
    "training": "Training",
    "training.finetuning": "Fine-tuning",
    "evaluation": "Evaluation",
    "inference": "Prediction",
    "export": "Export",
    "hub": "The Hub",
    "drawing": "Drawing",
    "arguments": "Arguments",
    "arguments.command_line": "Options and tasks",
    "choices": "Options and tasks",
    "options": "Options and tasks",
    "tasks": "Options and tasks",
}


def sections() -> dict[str, list[tuple[str, Any]]]:
    """The public names of the package and what they name, under the title of the folder that defines them."""
    found: dict[str, list[tuple[str, Any]]] = {title: [] for title in TITLES.values()}
    for module, names in rfdetr_hf.PUBLIC_NAMES.items():
        folder = module.split(".")[0]
        entries = found.setdefault(TITLES.get(module) or TITLES.get(folder) or folder.capitalize(), [])
        entries += [(name, getattr(rfdetr_hf, name)) for name in names]
    return {title: entries for title, entries in found.items() if entries}


def text_of(target: Any) -> str:
    """The docstring as Markdown: links of the form [`name`] as code, Google sections as bold words and code blocks."""
    lines = inspect.cleandoc(target.__doc__ or "").splitlines()
    out: list[str] = []
    for line in lines:
        section = re.fullmatch(r"(Args|Attributes|Returns|Raises|Yields):", line)
        out += ["", f"**{section[1]}**", ""] if section else [line]
    text = re.sub(r"\[(`\w+`)\]", r"\1", "\n".join(out))
    return re.sub(r"\n{3,}", "\n\n", text)


def signature_of(target: Any) -> str:
    """The signature without annotations, which the text repeats in words, and without addresses of objects."""
    parameters = [p.replace(annotation=inspect.Parameter.empty) for p in inspect.signature(target).parameters.values()]
    signature = str(inspect.Signature([p for p in parameters if p.name != "self"]))
    signature = re.sub(r"<bound method ([\w.]+) of <(?:[^<>]|<[^<>]*>)*>>", r"\1", signature)
    return re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "…", signature)


def options_of(arguments: type) -> list[str]:
    """A table of the fields of a dataclass of arguments."""
    rows = ["", "| option | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(arguments):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        default = default.value if isinstance(default, Enum) else default
        shown = "required" if default is dataclasses.MISSING else f"`{default!r}`"
        meaning = field.metadata["help"].replace("|", "\\|")
        if 0 < len(field.metadata.get("choices", ())) <= 6:
            meaning += " One of " + ", ".join(f"`{choice}`" for choice in field.metadata["choices"]) + "."
        rows.append(f"| `{field.name}` | {shown} | {meaning} |")
    return rows


def methods_of(cls: type) -> list[tuple[str, Any]]:
    """The documented public methods that the class defines, or takes from classes that are not public."""
    public = {f"rfdetr_hf.{module}" for module in rfdetr_hf.PUBLIC_NAMES}
    hidden = [c for c in cls.__mro__[1:] if c.__module__.startswith("rfdetr_hf.") and c.__module__ not in public]
    found = []
    for name, member in [item for c in (cls, *hidden) for item in vars(c).items()]:
        if name in dict(found):
            continue
        function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        if not name.startswith("_") and inspect.isfunction(function) and function.__doc__:
            found.append((name, getattr(cls, name)))
    return found


def entry_lines(name: str, target: Any) -> list[str]:
    """One class or function."""
    if not callable(target):
        return [f"### `{name}`", "", f"A `{type(target).__name__}`: {', '.join(f'`{each}`' for each in target)}.", ""]
    fields = dataclasses.is_dataclass(target) and all("help" in f.metadata for f in dataclasses.fields(target))
    plain = inspect.isfunction(target) or "__init__" in vars(target) and not dataclasses.is_dataclass(target)
    heading = f"{name}{signature_of(target)}" if plain else name
    lines = [f"### `{heading}`", "", text_of(target)]
    if fields:
        return lines + options_of(target) + [""]
    if inspect.isclass(target):
        for method_name, method in methods_of(target):
            lines += ["", f"#### `{method_name}{signature_of(method)}`", "", text_of(method)]
    return [*lines, ""]


def make() -> str:
    """The page."""
    origin = "Import every name from `rfdetr_hf`. `python docs/make_api.py` writes this page from the docstrings."
    lines = ["# API reference", "", origin, ""]
    for title, entries in sections().items():
        lines += [f"## {title}", ""]
        for name, target in entries:
            lines += entry_lines(name, target)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    page = make()
    if "--check" in sys.argv[1:]:
        current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == page
        sys.exit(0 if current else f"{PAGE} is out of date: run python docs/make_api.py")
    PAGE.write_text(page, encoding="utf-8")
