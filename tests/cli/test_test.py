"""`rfdetr-hf test`: the metrics of the test split."""

from datasets import DatasetDict, load_from_disk
from helpers.command_lines import scores_of

from rfdetr_hf.cli.main import main


def test_the_test_split_is_scored_under_its_name(untrained, tmp_path, capsys):
    model, data = untrained("detection")
    scores = scores_of(["test", model, data, "--num_workers", "0"], capsys)
    assert "test_map" in scores and not any(name.startswith("eval_") for name in scores)
    few = str(tmp_path / "few")
    DatasetDict(validation=load_from_disk(data)["validation"]).save_to_disk(few)
    assert main(["test", model, few]) == 1
    assert "has no split 'test'; it has validation" in capsys.readouterr().err
