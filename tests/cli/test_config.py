"""`rfdetr-hf config`: what it prints is what `fit` reads."""

import yaml

from rfdetr_hf import parse_arguments
from rfdetr_hf.cli import config, fit
from rfdetr_hf.cli.main import main


def test_config_prints_what_fit_reads_back(run_yaml, tmp_path, capsys):
    assert main(["config", "--config", str(run_yaml), "--learning_rate", "3e-4", "--resume"]) == 0
    out = capsys.readouterr().out
    assert "# effective batch: 4 images x processes" in out
    assert "# input: 64 x 64, a multiple of 16" in out
    (tmp_path / "again.yaml").write_text(out)
    first = parse_arguments(fit.TYPES, ["--config", str(run_yaml), "--learning_rate", "3e-4", "--resume"])
    again = parse_arguments(fit.TYPES, ["--config", str(tmp_path / "again.yaml")])
    assert first == again
    assert first[2].learning_rate == 3e-4 and first[2].resume_from_checkpoint == "true"
    assert yaml.safe_load(config.resolved(*again)) == yaml.safe_load(out)
