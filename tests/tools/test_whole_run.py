import pytest
from helpers.scripts import load_script

whole_run = load_script("benchmarks/whole_run.py")


def row(way, seed, ap, seconds=(10, 20, 30), ap50=(0.3, 0.5, 0.6)):
    epochs = [{"seconds": s, "ap": a, "ap50": b} for s, a, b in zip(seconds, ap, ap50, strict=True)]
    return {"way": way, "seed": seed, "epochs": epochs, "seconds": seconds[-1], "cpu": 40, "memory": 100}


def test_times_to_the_ap_that_all_runs_reach_are_compared():
    slow = (20, 40, 60)
    rows = [row("ours", seed, (0.1, 0.3, 0.4)) for seed in (0, 1)]
    rows += [row("rfdetr", seed, (0.1, 0.2, 0.3), slow) for seed in (0, 1)]
    found = whole_run.compare(rows)
    assert found["target"] == 0.3 and found["counts"]
    assert found["ours"]["seconds_to_target"] == 20 and found["rfdetr"]["seconds_to_target"] == 60
    assert found["ratios"] == {"seconds_to_target": 3, "seconds": 2, "cpu": 1, "memory": 1}
    assert whole_run.seconds_to(rows[0], 0.2) == pytest.approx(15)


@pytest.mark.parametrize(
    "second", [row("ours", 1, (0.1, 0.3, 0.46)), row("ours", 1, (0.1, 0.3, 0.4), ap50=(0.1, 0.2, 0.3))]
)
def test_a_way_that_spreads_or_learns_nothing_does_not_count(second):
    assert not whole_run.compare([row("ours", 0, (0.1, 0.3, 0.4)), second])["counts"]
