"""Runs that are killed at random instants end with the bits of one that is not."""

import pytest
from kill import compare
from launching import slow


def kill(tmp_path, tiny_config, **options):
    tiny_config().save_pretrained(tmp_path / "config")
    figures = compare(tmp_path, **options)
    assert figures["different"] == [], figures


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("world", "async_save"), [slow(1, True), (2, False)])
def test_two_kills_leave_no_trace(tmp_path, tiny_config, world, async_save):
    """The run to compare with saves at once in either case."""
    kill(tmp_path, tiny_config, world=world, kills=2, steps=18, seed=1, async_save=async_save)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("world", "async_save"), [(1, False), (2, False), (1, True), (2, True)])
def test_twenty_kills_leave_no_trace(tmp_path, tiny_config, world, async_save):
    kill(tmp_path, tiny_config, world=world, kills=20, steps=120, async_save=async_save)
