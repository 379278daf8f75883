"""Options of an evaluation."""

import pytest

from rfdetr_hf import EvaluateArguments, EvaluationArguments


def test_a_report_needs_a_folder():
    with pytest.raises(ValueError, match="report needs output_dir"):
        EvaluateArguments(model_name_or_path="model", report=True)
    assert EvaluateArguments(model_name_or_path="model", report=True, output_dir="here").report


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"backend": "coco"}, {"tile": 8}, {"device": "gpu"}])
def test_values_of_model_and_views_are_checked_alike(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        EvaluateArguments(model_name_or_path="model", **options)


def test_metrics_replace_no_file(tmp_path):
    args = EvaluationArguments(model_name_or_path="model", output=str(tmp_path / "metrics.json"))
    args.require_new()
    (tmp_path / "metrics.json").touch()
    with pytest.raises(FileExistsError, match="--output .*metrics.json exists"):
        args.require_new()
    EvaluationArguments(model_name_or_path="model").require_new()
