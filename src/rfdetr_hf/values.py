"""Single values of annotation files: what is read as an integer or as yes and no, and how messages show what is not."""

import re
import reprlib
from typing import Any

import numpy as np

_DIGITS = re.compile(r"-?(0|[1-9][0-9]{0,18})")
_NO = frozenset({"", "0", "-1", "false", "f", "no", "n", "none", "null"})
_YES = frozenset({"1", "true", "t", "yes", "y"})
_EXACT_FLOATS = 2**53


def as_integer(value: Any) -> int | None:
    """An integer of 64 bits: also as a float that is exact, or as text of digits. None for anything else."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT_FLOATS:
        value = int(value)
    elif isinstance(value, str) and _DIGITS.fullmatch(value):
        value = int(value)
    return value if isinstance(value, int) and -(2**63) <= value < 2**63 else None


def as_id(value: Any) -> int | str | None:
    """An image id: an integer of any size, as arrays of one number hold it too, or a text. None for anything else."""
    held = value.reshape(-1).tolist() if hasattr(value, "reshape") else [value]
    value = held[0] if len(held) == 1 else None
    is_plain = isinstance(value, (int, str)) and not isinstance(value, bool)
    return value if is_plain else as_integer(value)


def as_flag(value: Any) -> bool | None:
    """Yes or no, as a boolean, a number or a word; null and -1 are no. None for anything else."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, (int, float)):
        return True if value == 1 else False if value in (0, -1) else None
    word = value.strip().lower() if isinstance(value, str) else None
    return True if word in _YES else False if word in _NO else None


def is_number(value: Any) -> bool:
    """Whether a value is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) < 2**1000


def is_boolean(value: Any) -> bool:
    """Whether a value is true or false, which Python takes for 1 and 0."""
    return isinstance(value, (bool, np.bool_))


def shown(value: Any) -> str:
    """A value in a message, of at most some 60 characters however large it is."""
    try:
        text = _REPR.repr(value)
    except ValueError:  # Python writes no integers of more than 4300 digits
        text = f"({type(value).__name__} of too many digits)"
    return text if len(text) <= 60 else text[:57] + "…"


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 57
