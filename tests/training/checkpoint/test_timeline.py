"""Which checkpoints lead to where a run stands."""

import pytest

from rfdetr_hf.training.checkpoint.timeline import TimeLine

FIRST = TimeLine((("a", 0),))
BACK_TO_6 = TimeLine((("a", 0), ("b", 6)))
BACK_TO_3 = TimeLine((("a", 0), ("b", 6), ("c", 3)))
OTHER = TimeLine((("z", 0),))


@pytest.mark.parametrize(
    ("line", "mark", "steps"),
    [
        (FIRST, FIRST, [2, 6, 10]),
        (BACK_TO_6, FIRST, [2, 6]),
        (BACK_TO_6, BACK_TO_6, [2, 6, 10]),
        (FIRST, BACK_TO_6, []),
        (BACK_TO_3, FIRST, [2]),
        (BACK_TO_3, BACK_TO_6, [2]),
        (OTHER, FIRST, []),
    ],
)
def test_a_checkpoint_leads_on_until_the_run_went_back_behind_it(line, mark, steps):
    assert [step for step in (2, 6, 10) if line.leads_from(mark, step)] == steps


def test_a_rewind_of_a_rewind_is_another_line_of_the_same_run():
    one, two = FIRST.rewound(6), FIRST.rewound(6)
    assert one != two and one.same_run(two) and not one.same_run(OTHER)
    assert not one.leads_from(two, 7) and not TimeLine.begin().same_run(TimeLine.begin())


@pytest.mark.parametrize("value", [None, [], "ab", [["a"]], [["a", "x"]], {"a": 1}, 3, [3], [["a", float("inf")]]])
def test_what_is_no_time_line_is_none(value):
    assert TimeLine.from_json(value) is None
    assert TimeLine.from_json(BACK_TO_3.to_json()) == BACK_TO_3
