"""`rfdetr-hf doctor`."""

import importlib.metadata
import re

from rfdetr_hf.cli import doctor
from rfdetr_hf.cli.main import main


def test_doctor_reports(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"torch {importlib.metadata.version('torch')}" in out
    assert "everything required is there" in out
    assert re.search(r"^  (installed: .*|)onnx", out, re.M) and "CPU" in out
    assert out.count("pip install -e") <= 1, "a command for all extras"


def test_doctor_finds_what_is_missing(capsys, monkeypatch):
    real = doctor._installed
    others = {"scipy": None, "numpy": "1.0", "onnx": None, "peft": "0.1"}
    monkeypatch.setattr(doctor, "_installed", lambda name: others.get(name, real(name)))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "scipy missing: pip install 'scipy>=1.11'" in out
    assert "numpy 1.0: pip install 'numpy>=1.26'" in out
    assert re.search("^  onnx:      lacks onnx", out, re.M) and "  lora:      lacks peft>=0.18 (0.1 is there)\n" in out
    assert "install the extra 'NAME': python -m pip install -e '.[NAME]'" in out
    assert "something required is missing" in out
