"""Nested values as one file."""

import shutil

import pytest
import torch
from helpers.checkpoints import arguments, rewrite
from safetensors import safe_open

from rfdetr_hf import RFDETRTrainer
from rfdetr_hf.training.checkpoint.directory import CheckpointError
from rfdetr_hf.training.checkpoint.tree import save_tree, tree_of


def test_a_state_that_cannot_be_taken_up_names_its_file(tmp_path, two_checkpoints, tiny_model, shapes):
    root = tmp_path / "run"
    shutil.copytree(two_checkpoints, root)
    save_tree(root / "checkpoint-2" / "rank_states.safetensors", [{"generators": {"python": [1]}, "losses": {}}])
    rewrite(root / "checkpoint-2", "rank_states.safetensors", None)
    args = arguments(root, max_steps=3, eval_strategy="no")
    with pytest.raises(CheckpointError, match=r"rank_states.* cannot be taken up: .*; resume from another checkpoint"):
        RFDETRTrainer(tiny_model(), args, shapes).train(resume_from_checkpoint=str(root / "checkpoint-2"))


def test_a_tree_comes_back_as_it_was(tmp_path):
    tensor = torch.arange(6).view(2, 3)
    tree = {"a": [1, 2.5, None, True, "text"], "pair": (tensor, {"half": tensor.half()}), 3: {"__tuple__": "mine"},
            "shared": [tensor, tensor.T], "empty": [{}, (), []]}  # fmt: skip
    save_tree(tmp_path / "tree.safetensors", tree)

    def read():
        with safe_open(tmp_path / "tree.safetensors", "pt") as file:
            return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}

    found = tree_of(tmp_path / "tree.safetensors", read)
    assert found["a"] == tree["a"] and found[3] == tree[3] and found["empty"] == tree["empty"]
    assert isinstance(found["pair"], tuple) and torch.equal(found["pair"][0], tensor)
    assert found["pair"][1]["half"].dtype == torch.float16 and torch.equal(found["shared"][1], tensor.T)
    with pytest.raises(TypeError, match="/a/1 is a set, which no checkpoint can hold"):
        save_tree(tmp_path / "other.safetensors", {"a": [1, {2}]})
