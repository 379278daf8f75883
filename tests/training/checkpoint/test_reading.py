"""The files of a checkpoint, each read once."""

import shutil
from pathlib import Path

import pytest
from helpers.checkpoints import arguments

from rfdetr_hf import RFDETRTrainer


def test_a_resume_reads_each_file_once(two_checkpoints, tmp_path, tiny_model, shapes, monkeypatch):
    root, read = tmp_path / "run", []
    shutil.copytree(two_checkpoints, root)
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or read_bytes(path))
    for reader in ("reading.safe_open", "tree.load_file", "reading.checksum"):
        name = f"rfdetr_hf.training.checkpoint.{reader}"
        inner = pytest.importorskip(name.rpartition(".")[0]).__dict__[name.rpartition(".")[2]]
        monkeypatch.setattr(name, lambda path, *more, inner=inner: read.append(Path(path).name) or inner(path, *more))
    args = arguments(root, max_steps=2, eval_strategy="no", save_strategy="no")
    trainer = RFDETRTrainer(tiny_model(), args, shapes)
    trainer.train(resume_from_checkpoint=True)
    large = [name for name in read if name.endswith(".safetensors")]
    assert sorted(large) == ["ema.safetensors", "model.safetensors", "rank-0.safetensors", "rank_states.safetensors"]
