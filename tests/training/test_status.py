"""Where a run stands, as `status.json` and `rfdetr-hf status` tell it."""

import json

from rfdetr_hf import read_status
from rfdetr_hf.cli.main import main
from rfdetr_hf.training.status import RunStatus


def test_a_run_without_its_lock_has_failed(tmp_path, capsys):
    RunStatus(tmp_path).write(state="running", step=6)
    assert main(["status", str(tmp_path), "--exit-code"]) == 1
    assert "ended without a word" in capsys.readouterr().out
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "running"


def test_fields_last_and_no_other_file_is_followed(tmp_path):
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "status.json").symlink_to(tmp_path / "elsewhere")
    status = RunStatus(tmp_path)
    status.write(state="running", step=1, score=0.5)
    status.write(state="finished", step=2)
    assert read_status(tmp_path)["score"] == 0.5 and read_status(tmp_path)["step"] == 2
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "status.json"]
