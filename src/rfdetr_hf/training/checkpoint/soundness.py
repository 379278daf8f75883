"""Whether the values of a checkpoint can be those of a run: what a checksum does not tell."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...values import is_number
from . import contents as names
from .contents import read_content
from .directory import CheckpointError, about
from .optimizer import FOLDER, INDEX
from .previous import open_optimizer
from .reading import CheckpointFiles
from .weights import CONFIG, MODEL

REMEDY = "resume from another checkpoint, or start a new run from its weights with model_name_or_path"
_MOST = 10**9  # steps


class _Rule(NamedTuple):
    meaning: str
    holds: Callable[[Any], bool]


def _whole(low: int = 0, high: int = _MOST) -> _Rule:
    return _Rule(f"an integer from {low} to {high}", lambda v: type(v) is int and low <= v <= high)


def _is_number(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def _or_none(rule: _Rule) -> _Rule:
    return _Rule(f"{rule.meaning}, or null", lambda v: v is None or rule.holds(v))


def _is_table(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, Mapping) and all(of(each) for each in value.values())


_FLAG = _Rule("true or false", lambda v: isinstance(v, bool))
_TEXT = _Rule("a text", lambda v: isinstance(v, str))
_TABLE = _Rule("a table", lambda v: isinstance(v, Mapping))
_NUMBER = _Rule("a finite number", _is_number)
_LIMIT = _Rule("a number", lambda v: is_number(v) and v == v)  # a user's callback may begin with infinity
_RATE = _Rule("a finite number of at least 0", lambda v: _is_number(v) and v >= 0)
_RATES = _Rule("a list of finite numbers of at least 0", lambda v: isinstance(v, list) and all(map(_RATE.holds, v)))
# Optimizers of other makes have two numbers for one, or none where they find it themselves.
_SETTING = _Rule(
    _RATE.meaning,
    lambda v: v is None or all(each is None or _RATE.holds(each) for each in (v if isinstance(v, list) else [v])),
)
_LIST_OF_TABLES = _Rule("a list of tables", lambda v: isinstance(v, list) and all(map(_TABLE.holds, v)))

# Earlier versions saved states of a user's callbacks that have no arguments.
_STATE = _Rule(
    "a state", lambda v: _TABLE.holds(v) and _TABLE.holds(v.get("attributes")) and _TABLE.holds(v.get("args", {}))
)
# One of each class of callbacks, or a list of several.
_STATES = _Rule(
    "a table of states", lambda v: _is_table(v, lambda of: all(map(_STATE.holds, of if isinstance(of, list) else [of])))
)
_FLAGS = _Rule("a table of true or false", lambda v: _is_table(v, _FLAG.holds))


def _check(path: Path, values: Mapping[str, Any], rules: Mapping[str, _Rule], inside: str = "") -> None:
    """Compare fields with their rules; one that is not there is null.

    Raises:
        CheckpointError: one breaks its rule.
    """
    for name, rule in rules.items():
        if not rule.holds(values.get(name)):
            found = repr(values[name])[:60] if name in values else "missing"
            raise CheckpointError(f"{path}: field {inside}{name} is {found}, not {rule.meaning}; {REMEDY}")


def check_values(files: CheckpointFiles) -> None:
    """Look at every value that a resume takes from the small files of a checkpoint and from the optimizer's index.

    Raises:
        CheckpointError: one cannot be that of a run; the message names file, field and remedy.
    """
    try:
        _check_files(files)
    except (RecursionError, OverflowError) as error:
        raise CheckpointError(f"{files.folder} holds values of no run ({error!r}); {REMEDY}") from error


def _check_files(files: CheckpointFiles) -> None:
    step = _check_callbacks(files)
    _check_progress(files, step)
    _check_classes(files)
    index = f"{FOLDER}/{INDEX}"
    if files.exists(index):
        _check_index(files.folder / index, files.value(index, dict))
    open_optimizer(files)
    for name in (MODEL, names.SCHEDULER):
        if not files.exists(name) and not files.exists(Path(name).with_suffix(".pt").name):
            raise CheckpointError(f"{files.folder / name} is missing; {REMEDY}")
    for name in (names.SCHEDULER, names.SCALER):
        path = files.folder / name
        if files.exists(name):
            _check_numbers(path, values := read_content(files, name))
            _check(path, values, {n: _whole(-1) for n in ("last_epoch", "_step_count") if n in values})
            _check(path, values, {n: _RATES for n in ("base_lrs", "_last_lr") if n in values})
            _check(path, values, {n: _RATE for n in ("scale", "growth_factor", "backoff_factor") if n in values})
    processes = read_content(files, names.PROCESSES)
    complete = isinstance(processes, list) and processes and all(isinstance(each, Mapping) for each in processes)
    if not complete or not all({"generators", "losses"} <= each.keys() for each in processes):
        raise CheckpointError(f"{files.folder / names.PROCESSES}: holds no states of processes; {REMEDY}")


def _check_callbacks(files: CheckpointFiles) -> int:
    """`trainer_state.json`; returns its step."""
    path, values = files.folder / names.CALLBACKS, read_content(files, names.CALLBACKS)
    _check(path, values, {
        "global_step": _whole(), "epoch": _or_none(_RATE), "log_history": _LIST_OF_TABLES,
        "best_metric": _or_none(_LIMIT), "best_global_step": _or_none(_whole()),
        "best_model_checkpoint": _or_none(_TEXT), "stateful_callbacks": _or_none(_STATES),
    })  # fmt: skip
    for i, row in enumerate(values["log_history"]):
        _check(path, row, {"step": _whole()}, f"log_history[{i}].")
    step, named = values["global_step"], about(files.folder).get("step")
    if isinstance(named, int) and named != step:
        raise CheckpointError(f"{path}: field global_step is {step}, but the checkpoint is of step {named}; {REMEDY}")
    return step


def _check_progress(files: CheckpointFiles, step: int) -> None:
    path, values = files.folder / names.PROGRESS, read_content(files, names.PROGRESS)
    counts, sizes = ("steps_in_epoch", "skipped_steps", "skipped_in_a_row"), ("world_size", "images_per_step")
    _check(path, values, {
        **{name: _whole(0, step) for name in counts}, **{name: _whole(1) for name in (*sizes, "steps_per_epoch")},
        **{name: _FLAG for name in ("epoch_finished", "epoch_stopped", "stopped")},
        "num_images": _whole(1, 2**53), "epoch": _whole(),
        "due": _FLAGS, "best": _TABLE, "arguments": _TABLE,
        "image_ids": _TEXT, "best_weights": _or_none(_TEXT),
        "data": _or_none(_Rule("a table of texts", lambda v: _is_table(v, _TEXT.holds))),
        "annotations": _or_none(_TEXT), "format": _or_none(_whole(1)), "order": _or_none(_whole(1)),
        "ema_updates": _or_none(_whole()), "seconds": _or_none(_RATE),
    })  # fmt: skip
    _check(path, values["best"], {
        "score": _or_none(_NUMBER), "step": _or_none(_whole(0, step)),
        "source": _or_none(_Rule("raw or ema", lambda v: v in ("raw", "ema"))),
        "smoothed": _Rule("a table of finite numbers", lambda v: _is_table(v, _is_number)),
    }, "best.")  # fmt: skip


def _check_classes(files: CheckpointFiles) -> None:
    table = files.value(CONFIG, dict).get("id2label")
    numbered = isinstance(table, Mapping) and all(str(label).isdecimal() for label in table)
    if not numbered or not _is_table(table, _TEXT.holds):
        raise CheckpointError(
            f"{files.folder / CONFIG}: field id2label is {repr(table)[:60]}, not a table of class names; {REMEDY}"
        )


def _check_index(path: Path, index: Mapping[str, Any]) -> None:
    _check(path, index, {
        "groups": _LIST_OF_TABLES,
        "shapes": _Rule("a table of shapes", lambda v: _is_table(v, lambda sides: isinstance(sides, list) and all(
            type(side) is int and side >= 0 for side in sides))),
        "numbers": _Rule("a table of tables", lambda v: _is_table(v, _TABLE.holds)),
    })  # fmt: skip
    for i, group in enumerate(index["groups"]):
        _check_numbers(path, group, f"groups[{i}].")
        rules = {name: _SETTING for name in ("lr", "initial_lr", "weight_decay", "eps") if name in group}
        names_of = _Rule("a list of names", lambda v: isinstance(v, list) and all(map(_TEXT.holds, v)))
        _check(path, group, {"param_names": names_of} | rules, f"groups[{i}].")
    number = _Rule("a number", lambda v: type(v) in (int, float))
    count = _Rule(f"a count of steps from 0 to {_MOST}", lambda v: number.holds(v) and 0 <= v <= _MOST and v == int(v))
    for name, numbers in index["numbers"].items():
        rules = {field: count if field == "step" else number for field in numbers}
        _check(path, numbers, {f: r for f, r in rules.items() if numbers[f] == numbers[f]}, f"numbers.{name}.")


def _check_numbers(path: Path, values: Mapping[str, Any], inside: str = "") -> None:
    """A user's optimizer or schedule may hold any numbers but NaN."""
    for place, number in _numbers(values, inside):
        if number != number:
            raise CheckpointError(f"{path}: field {place} is {number}, not a number; {REMEDY}")


def _numbers(value: Any, place: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _numbers(each, f"{place}{name}." if isinstance(each, Mapping) else f"{place}{name}")
    elif isinstance(value, (list, tuple)):
        for i, each in enumerate(value):
            yield from _numbers(each, f"{place}[{i}]")
    elif type(value) in (int, float):
        yield place.rstrip("."), value
