import pytest
from helpers.scripts import load_script


@pytest.fixture(scope="module")
def fuzz():
    return load_script("tools/fuzz_options.py")


def test_a_few_changed_option_files_are_read_as_written_or_refused_by_name(fuzz):
    outcomes, wrong, _, matter = fuzz.run(40, seed=1)
    assert wrong == [] and sum(outcomes.values()) == 40 and matter >= 32


@pytest.mark.slow
def test_many_changed_option_files_are_read_as_written_or_refused_by_name(fuzz):
    _, wrong, passes, matter = fuzz.run(400, seed=2)
    assert wrong == [] and matter >= 320 and set(passes) <= set(fuzz.REASONS)


def test_what_is_wrong_is_found(fuzz, tmp_path, monkeypatch):
    assert fuzz.look(tmp_path, b"seed: 3")[0] == "passes" and fuzz.look(tmp_path, b"seed: x")[0] == "refused"

    def read_badly(types, argv):
        return (fuzz.RFDETRTrainingArguments(seed=750),)

    monkeypatch.setattr(fuzz, "parse_arguments", read_badly)
    assert fuzz.look(tmp_path, b"seed: 010") == ("wrong", "seed: '010' became 750")

    def fail(types, argv):
        raise KeyError("strategy")

    monkeypatch.setattr(fuzz, "parse_arguments", fail)
    assert fuzz.look(tmp_path, b"seed: 3")[0] == "wrong"

    def refuse(types, argv):
        raise fuzz.UsageError("month must be in 1..12")

    monkeypatch.setattr(fuzz, "parse_arguments", refuse)
    assert fuzz.look(tmp_path, b"seed: 3")[0] == "wrong"
