"""Changes option files at random and looks at what `parse_arguments` makes of them: python tools/fuzz_options.py

Each mutation starts from a valid YAML file of options, seldom with words of the command line beside it. It counts as
one that matters when a reader that checks nothing would load other values from it, or nothing at all. What is wrong
with the package is

* an exception that is no `UsageError`,
* a `UsageError` that names neither the file nor an option,
* a hang, or a value that is not the one that is written.

What passes is listed by kind, with why it is right. Exits with 1 where something is wrong.
"""

import argparse
import contextlib
import io
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from rfdetr_hf import DataArguments, ModelArguments, RFDETRTrainingArguments, UsageError, parse_arguments

TYPES = (ModelArguments, DataArguments, RFDETRTrainingArguments)
NAMES = [each.name for cls in TYPES for each in fields(cls)]
# Null is "not given" for these, and what is not given may follow from other options.
OPTIONAL = {each.name for cls in TYPES for each in fields(cls) if "None" in str(each.type)}
LIMIT_S = 20.0
BASE = """\
model_name_or_path: nano
from_scratch: true
resolution: 384
config_overrides: {num_queries: 100}
dataset_name: path/to/data
train_split: train
validation_split: 0.1
output_dir: outputs/run
num_train_epochs: 12
per_device_train_batch_size: 4
gradient_accumulation_steps: 4
learning_rate: 1.0e-4
layer_decay: 0.8
weight_decay: 0.0001
warmup_epochs: 1
ema_decay: 0.99
use_ema: true
multi_scale: per_batch
horizontal_flip: 0.5
dataloader_num_workers: 2
bf16: false
seed: 7
eval_strategy: epoch
save_strategy: epoch
save_total_limit: 2
logging_steps: 10
report_to: [tensorboard, wandb]
tracker_kwargs: {wandb: {entity: us}}
run_name: first
lr_scheduler_type: cosine
"""

# What a value can be replaced by, as it is written in the file.
VALUES = (
    "null", "~", "", "yes", "no", "on", "off", "true", "false", "True", "0", "1", "-1", "01", "0x10", "0o7", "12:30",
    "1e400", "-1e400", "1e-400", ".inf", "-.inf", ".nan", "1e3", "1_000", "99999999999999999999999999", "3.5", "-0.0",
    "2020-01-01", "2020-01-01 10:00:00", "2020-99-99", "[]", "{}", "[1, 2]", "[null]", "[[1]]", "{a: 1}", "'4'",
    "'nan'", "'1e-4'", "abc", "' '", "\u00e9\u4e2d", "!!binary aGk=", "!!set {a, b}", "!!python/object:os.system x",
    "&a [*a]", "*nothing", "!!float x", "!!int '3'", "!!str 4", "|\n  text", ">\n  folded\n  text", "--bf16", "%",
)  # fmt: skip


def replace_value(rng: random.Random, lines: list[str]) -> str:
    """A value becomes one of another kind."""
    n = rng.randrange(len(lines))
    value = rng.choice(VALUES)
    lines[n] = f"{lines[n].split(':')[0]}: {value}"
    return f"value {value.splitlines()[0] if value else 'empty'}"


def misspell(rng: random.Random, lines: list[str]) -> str:
    """A key loses, doubles or swaps a letter."""
    n = rng.randrange(len(lines))
    key, _, rest = lines[n].partition(":")
    at = rng.randrange(1, len(key))
    lines[n] = rng.choice([key[:at] + key[at + 1 :], key[:at] + key[at - 1 :], key.upper(), f"{key} "]) + ":" + rest
    return "misspelt key"


def repeat_key(rng: random.Random, lines: list[str]) -> str:
    """A key stands there twice, with other values."""
    key = rng.choice(lines).split(":")[0]
    lines.insert(rng.randrange(len(lines) + 1), f"{key}: {rng.choice(VALUES[:30])}")
    return "repeated key"


def break_syntax(rng: random.Random, lines: list[str]) -> str:
    """A character of YAML's own somewhere, or one taken away."""
    text = "\n".join(lines)
    at = rng.randrange(len(text))
    sign = rng.choice(list(":{}[],&*#?|->%@`\"'\t\x00\x07\ufeff") + [""])
    text = text[:at] + sign + text[at + (not sign) :]
    lines[:] = text.splitlines()
    return f"character {sign!r}" if sign else "character lost"


def shift(rng: random.Random, lines: list[str]) -> str:
    """A line moves to the right, or two lines become one."""
    n = rng.randrange(1, len(lines))
    if rng.random() < 0.5:
        lines[n] = "  " + lines[n]
        return "indented line"
    lines[n - 1 : n + 1] = [lines[n - 1] + " " + lines[n]]
    return "joined lines"


def other_document(rng: random.Random, lines: list[str]) -> str:
    """The file is no mapping, has two documents, is empty, or deep."""
    kind, text = rng.choice(
        [("list", "- a\n- b"), ("text", "abc"), ("empty", ""), ("number", "3"), ("two documents", "a: 1\n---\nb: 2"),
         ("deep", "seed: " + "[" * 3000 + "]" * 3000), ("null", "null"), ("number as a key", "1: 2"),
         ("list as a key", "[1]: 2"), ("merge", "x: &x {seed: 3}\n<<: *x"), ("tag", "!!python/name:os.system")]
    )  # fmt: skip
    lines[:] = text.splitlines()
    return f"document: {kind}"


def scramble_number(rng: random.Random, lines: list[str]) -> str:
    """A number gets far out of its range, or another sign."""
    numbers = [n for n, line in enumerate(lines) if re.search(r": -?[\d.]+(e-?\d+)?$", line)]
    n = rng.choice(numbers)
    key, _, text = lines[n].partition(": ")
    value = float(text) * rng.choice([-1, 0, 1e3, 1e9, 1e30, 1e300, 0.1, 1.5])
    lines[n] = f"{key}: {value!r}" if rng.random() < 0.5 else f"{key}: {value:.0f}"
    return "number changed"


def add_option(rng: random.Random, lines: list[str]) -> str:
    """Another option with some value."""
    name = rng.choice(NAMES)
    lines[:] = [line for line in lines if not line.startswith(f"{name}:")]
    value = rng.choice(VALUES)
    lines.append(f"{name}: {value}")
    return f"option with {value.splitlines()[0] if value else 'empty'}"


MUTATIONS: tuple[Callable[[random.Random, list[str]], str], ...] = (
    replace_value, replace_value, replace_value, misspell, repeat_key, break_syntax, shift, other_document,
    scramble_number, add_option, add_option,
)  # fmt: skip

# Why something that passes is right, by the beginning of its kind.
REASONS = {
    "value": "a value of the option's kind within its range; texts are kept as they are written",
    "option": "likewise",
    "number": "within the range of the option",
    "character": "a comment, a quoted text, or a space that YAML does not count",
    "indented": "the line continues the text above it, as YAML says",
    "joined": "the second line is part of the text of the first, as YAML says",
    "repeated": "never",
    "misspelt": "spaces before the colon are not part of a key",
    "bytes": "the bytes are text",
    "document": "an anchor is merged as YAML says",
}


def unchecked(data: bytes) -> Any:
    """What a reader without checks would load; an exception where nothing."""
    try:
        return yaml.safe_load(data.decode("utf-8"))
    except Exception as error:  # noqa: BLE001 - whatever a reader may run into
        return type(error)


def mutate(rng: random.Random) -> tuple[str, bytes]:
    """One changed file, and the kind of the change."""
    lines = BASE.splitlines()
    kind = rng.choice(MUTATIONS)(rng, lines)
    data = "\n".join(lines).encode("utf-8", "surrogatepass")
    if rng.random() < 0.04:
        kind = "bytes: " + rng.choice(["latin", "cut", "utf-16"])
        data = {"latin": b"run_name: \xe9\n", "cut": data[: rng.randrange(len(data) + 1)] + b"\xe4",
                "utf-16": data.decode().encode("utf-16")}[kind.split(": ")[1]]  # fmt: skip
    return kind, data


def look(folder: Path, data: bytes) -> tuple[str, str]:
    """What `parse_arguments` makes of a file: ("passes", values), ("refused", message) or ("wrong", why)."""
    path = folder / "run.yaml"
    path.write_bytes(data)
    started = time.process_time()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            parsed = parse_arguments(TYPES, ["--config", str(path)])
    except UsageError as error:
        text = str(error)
        named = "run.yaml" in text or any(re.search(rf"\b{name}\b", text) for name in NAMES)
        return ("refused", text) if named else ("wrong", f"names neither file nor option: {text}")
    except BaseException as error:  # noqa: BLE001 - this is what is looked for
        return "wrong", f"{type(error).__name__}: {error}"
    if time.process_time() - started > LIMIT_S:
        return "wrong", f"took more than {LIMIT_S} s"
    written = yaml.load(data.decode("utf-8"), Loader=yaml.BaseLoader)
    values = {name: value for each in parsed for name, value in vars(each).items()}
    for name, text in written.items():
        if name in OPTIONAL and text in ("null", "~", ""):
            continue
        if isinstance(text, (str, list)) and not as_written(values[name], text):
            return "wrong", f"{name}: {text!r} became {values[name]!r}"
    return "passes", repr(parsed)


def as_written(value: Any, text: str | list[str]) -> bool:
    """Whether a value is what a person reads in the file."""
    if isinstance(text, list):
        return value in (text, ",".join(text))
    if isinstance(value, bool):
        return text.lower() in (
            ("true", "yes", "on", "1", "y", "t") if value else ("false", "no", "off", "0", "n", "f")
        )
    if value is None:
        return text in ("null", "~", "")
    if isinstance(value, (int, float)):
        return float(text) == value
    return text.lower() == str(getattr(value, "value", value)).lower()


def run(count: int, seed: int) -> tuple[Counter, list[str], dict[str, list[str]], int]:
    """Outcomes, what is wrong, what passes by kind, and how many mutations matter."""
    outcomes, wrong, passes, matter = Counter(), [], {}, 0
    plain = unchecked(BASE.encode())
    with tempfile.TemporaryDirectory() as folder:
        _, base = look(Path(folder), BASE.encode())
        for n in range(count):
            kind, data = mutate(random.Random(f"{seed}-{n}"))
            loads_other = unchecked(data) != plain
            matter += loads_other
            outcome, text = look(Path(folder), data)
            outcomes[outcome if outcome != "passes" or text != base else "no change"] += 1
            if outcome == "wrong":
                wrong.append(f"{seed}-{n} {kind}: {text}")
            elif outcome == "passes" and loads_other:
                passes.setdefault(kind.split(" ")[0].rstrip(":"), []).append(f"{seed}-{n} {kind}")
    return outcomes, wrong, passes, matter


def main(argv: list[str]) -> int:
    """Print the outcomes; returns 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400, help="mutations")
    parser.add_argument("--seed", type=int, default=0, help="of the first of them")
    args = parser.parse_args(argv)
    outcomes, wrong, passes, matter = run(args.count, args.seed)
    print(f"seed {args.seed}: {args.count} mutations, {matter} ({matter / args.count:.0%}) change what is loaded")
    print("  ".join(f"{name}: {number}" for name, number in sorted(outcomes.items())))
    print("what passes, by kind:")
    for kind, cases in sorted(passes.items()):
        print(f"  {kind:<10} {len(cases):>4}  {REASONS.get(kind, '?')}; such as {cases[0]}")
    print("\n".join(["wrong:", *wrong]) if wrong else "nothing is wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
