"""The plumbing of `benchmarks/gpu.py`, on a CPU with small models."""

import json

import pytest
import torch
from helpers.scripts import load_script


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return load_script("benchmarks/gpu.py")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(gpu, tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path)]) == 2
    assert "--device cpu --tiny" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_rows_by_name_and_the_earlier_results(gpu, tmp_path, capsys):
    assert gpu.main(["--list"]) == 0
    names = capsys.readouterr().out.split()
    assert names[0] == "environment" and "steps:keypoint-preview:b16:bf16+compile" in names
    assert not any(name.startswith("steps:keypoint") and name.endswith("rfdetr") for name in names)
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--rows", "steps:none", "--out", str(tmp_path)])
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--rows", "environment", "--out", str(tmp_path)])
    assert "give another folder" in capsys.readouterr().err


@pytest.mark.parametrize(("answer", "code"), [({"ok": True}, 0), ({"ok": False}, 1), ({"error": "Killed"}, 1)])
def test_results_are_written_after_each_row_and_a_failed_check_is_the_exit_code(
    gpu, tmp_path, monkeypatch, answer, code
):
    step = {"images/s": 12.345, "ms median": 6.0}
    monkeypatch.setattr(gpu, "run_row", lambda name, *_: {"row": name, **(step if "steps" in name else answer)})
    rows = ["waits", "steps:nano:b4:bf16"]
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path), "--rows", *rows]) == code
    assert [json.loads(line)["row"] for line in (tmp_path / "results.jsonl").read_text().splitlines()] == rows
    assert "| nano | 4 | bf16 | 12.35 | 6 |" in (tmp_path / "report.md").read_text()


def test_a_row_that_fails_is_an_error_in_its_place(gpu):
    assert "error" in gpu.run_row("none", 60, ["--device", "cpu", "--tiny"])


@pytest.mark.slow
@pytest.mark.parametrize("row", ["correctness", "waits", "recompilations", "one-rank"])
def test_checks_pass_on_a_cpu(gpu, row):
    result = gpu.run_row(row, 280, ["--device", "cpu", "--tiny"])
    assert result.get("ok"), result


@pytest.mark.slow
@pytest.mark.parametrize("row", ["steps:seg-medium:b4:bf16", "steps:nano:b4:transformers", "loaders", "evaluations"])
def test_rates_are_measured_on_a_cpu(gpu, row):
    result = gpu.run_row(row, 280, ["--device", "cpu", "--tiny"])
    assert "error" not in result and all(value > 0 for value in result.values() if not isinstance(value, str)), result
