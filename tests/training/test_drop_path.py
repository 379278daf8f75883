import numpy as np
import pytest

from rfdetr_hf import DropPathSchedule


def rates(*args, **kwargs):
    schedule = DropPathSchedule(*args, **kwargs)
    return [schedule.at(step) for step in range(schedule.total_steps)]


def test_standard_is_constant():
    assert rates(0.1, 5) == [0.1] * 5
    assert rates(0.0, 3) == [0.0] * 3


def test_early_constant():
    assert rates(0.2, 6, "early", cutoff_steps=4) == [0.2] * 4 + [0.0] * 2


def test_early_linear_descends_to_zero_at_the_end_of_the_phase():
    expected = np.concatenate([np.linspace(0.3, 0.0, 5), np.zeros(3)])
    assert rates(0.3, 8, "early", "linear", 5) == pytest.approx(expected, abs=1e-15)


def test_late_constant():
    assert rates(0.2, 6, "late", cutoff_steps=4) == [0.0] * 4 + [0.2] * 2


def test_late_linear_climbs_from_the_cutoff_to_the_last_step():
    expected = np.concatenate([np.zeros(3), np.linspace(0.0, 0.3, 5)])
    values = rates(0.3, 8, "late", "linear", 3)
    assert values == pytest.approx(expected, abs=1e-15)
    assert values[-1] == 0.3


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_phases_at_the_borders(schedule):
    assert rates(0.2, 4, "early", schedule, 0) == [0.0] * 4
    assert rates(0.2, 4, "late", schedule, 4) == [0.0] * 4
    assert (
        DropPathSchedule(0.2, 4, "early", schedule, 0).is_idle and DropPathSchedule(0.2, 4, "late", schedule, 4).is_idle
    )
    assert not DropPathSchedule(0.2, 4, "late", schedule, 3).is_idle and not DropPathSchedule(0.0, 4, "early").is_idle
    assert rates(0.2, 4, "early", schedule, 1) == [0.2, 0.0, 0.0, 0.0]
    assert rates(0.2, 4, "late", schedule, 3) == [0.0, 0.0, 0.0, 0.2]


@pytest.mark.parametrize(("mode", "value"), [("standard", 0.2), ("early", 0.0), ("late", 0.2)])
def test_the_last_value_stays(mode, value):
    assert DropPathSchedule(0.2, 4, mode, cutoff_steps=2).at(1000) == value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1.0}, "rate must lie"),
        ({"rate": -0.1}, "rate must lie"),
        ({"total_steps": 0}, "at least 1 step"),
        ({"mode": "middle"}, "'middle' is unknown; use one of standard, early, late"),
        ({"schedule": "cosine"}, "'cosine' is unknown; use one of constant, linear"),
        ({"schedule": "linear"}, "use mode 'early' or 'late'"),
        ({"mode": "late", "cutoff_steps": 11}, "within the run's 10 steps, not at 11"),
        ({"mode": "late", "cutoff_steps": -1}, "within the run's 10 steps"),
    ],
)
def test_bad_options_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        DropPathSchedule(**({"rate": 0.1, "total_steps": 10} | options))
