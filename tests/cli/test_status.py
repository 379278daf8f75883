"""`rfdetr-hf status`."""

import json
import math

import pytest

from rfdetr_hf.cli.main import main
from rfdetr_hf.training.checkpoint.lock import RunLock
from rfdetr_hf.training.status import RunStatus


@pytest.mark.parametrize(("state", "code"), [("finished", 0), ("preempted", 75), ("failed", 1), ("running", 3)])
def test_the_exit_code_tells_the_state(tmp_path, capsys, state, code):
    lock = RunLock(tmp_path)
    lock.acquire()
    RunStatus(tmp_path).write(
        state=state, step=6, max_steps=20, epoch=1.5, score=math.nan, last_checkpoint="checkpoint-6"
    )
    assert main(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"{state}: step 6/20, epoch 1.50, last checkpoint checkpoint-6, as of ")
    assert main(["status", str(tmp_path), "--exit-code", "--json"]) == code
    fields = json.loads(capsys.readouterr().out)
    assert fields["state"] == state and fields["score"] is None
    lock.release()


@pytest.mark.parametrize(
    "fields", ['"step": "abc", "epoch": [], "score": "1"', '"step": 1e999, "epoch": NaN, "score": {}, "message": [1]']
)
def test_fields_of_another_type_hide_no_state(tmp_path, capsys, fields):
    (tmp_path / "status.json").write_text(f'{{"state": "preempted", "eta_seconds": true, {fields}}}')
    assert main(["status", str(tmp_path), "--exit-code"]) == 75
    assert capsys.readouterr().out.startswith("preempted: ")


@pytest.mark.parametrize("content", [None, "", "[1]", '{"state": "asleep"}', "[" * 100_000])
def test_what_is_no_run_is_misuse(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "status.json").write_text(content)
    assert main(["status", str(tmp_path), "--exit-code"]) == 2
    assert str(tmp_path / "status.json") in capsys.readouterr().err
