"""Single values of annotation files: integers, ids, yes and no, and how messages show what is none of them."""

import math

import numpy as np
import pytest
import torch

from rfdetr_hf.values import as_flag, as_id, as_integer, is_boolean, is_number, shown


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, 3), (3.0, 3), ("3", 3), ("-3", -3), (np.int16(3), 3), (np.float32(3), 3), (2.0**53, 2**53),
     (-(2**63), -(2**63)),
     (True, None), (3.5, None), ("03", None), ("3.0", None), ("", None), (None, None), (2.0**54, None), (2**63, None),
     (math.nan, None), ([3], None), (np.bool_(True), None)],
)  # fmt: skip
def test_integers_are_whole_numbers_that_are_exact(value, expected):
    found = as_integer(value)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(7, 7), (2**70, 2**70), ("img7", "img7"), ("007", "007"), (np.int64(7), 7), (np.array([7]), 7),
     (torch.tensor(7), 7), (torch.tensor([7]), 7), (7.0, 7), (True, None), (7.5, None), (None, None), ([7], None),
     (np.array([7, 8]), None), (torch.tensor(True), None)],
)  # fmt: skip
def test_ids_are_integers_of_any_size_or_texts(value, expected):
    assert as_id(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, True), (1, True), (1.0, True), ("yes", True), (" TRUE ", True), ("1", True), (np.bool_(True), True),
     (False, False), (0, False), (-1, False), (None, False), ("", False), ("no", False), ("None", False), ("0", False),
     (2, None), (0.5, None), ("maybe", None), ([], None), (math.nan, None)],
)  # fmt: skip
def test_flags_are_yes_or_no_in_any_spelling(value, expected):
    assert as_flag(value) is expected


def test_numbers_fit_a_float_and_booleans_are_none():
    assert all(map(is_number, (1, -1.5, math.inf, math.nan, 2**999)))
    assert not any(map(is_number, (True, "1", None, 2**1001, np.int64(1))))
    assert is_boolean(False) and is_boolean(np.bool_(False)) and not is_boolean(0)


def test_messages_show_at_most_sixty_characters():
    assert shown("cat") == "'cat'" and shown(None) == "None"
    for large in ("x" * 10**6, list(range(10**5)), 10**5000, [10**5000], {"a": "b" * 1000}):
        assert len(shown(large)) <= 60
