"""Tensors of which every process holds a part, here in a mesh of one process. Two: tests/distributed."""

import pytest
import torch
import torch.distributed as dist
from helpers.runs import assert_same, weights
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from rfdetr_hf.training.checkpoint.sharded import (
    local_part,
    saved_tensors,
    shard_of,
    unsharded,
    unsharded_state,
    write_state,
)


@pytest.fixture
def mesh(tmp_path):
    """A mesh of this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_the_part_of_a_plain_tensor_is_itself():
    tensor = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    assert local_part(tensor).data_ptr() == tensor.data_ptr() and not local_part(tensor).requires_grad
    value = torch.ones(2, 3)
    assert unsharded(tensor, value) is value and shard_of(tensor, value) is value
    with pytest.raises(ValueError, match=r"shape \(3, 2\) does not fit one of \(2, 3\)"):
        shard_of(tensor, torch.ones(3, 2))


def test_writing_to_the_part_of_a_sharded_tensor_changes_it(mesh):
    tensor = distribute_tensor(torch.arange(6.0).view(2, 3), mesh, [Shard(0)])
    local_part(tensor).add_(1)
    assert torch.equal(tensor.full_tensor(), torch.arange(6.0).view(2, 3) + 1)
    part = shard_of(tensor, torch.full((2, 3), 7.0))
    assert not isinstance(part, DTensor) and torch.equal(unsharded(tensor, part), torch.full((2, 3), 7.0))
    with pytest.raises(ValueError, match="does not fit"):
        shard_of(tensor, torch.ones(6))


def test_a_sharded_model_is_written_as_the_whole_one(mesh):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    before = weights(model)
    fully_shard(model, mesh=mesh)
    tensors = saved_tensors(model)
    assert all(isinstance(tensor, DTensor) for tensor in tensors.values())
    assert_same(unsharded_state(tensors), before)
    assert unsharded_state(tensors, keep=False) == {}
    other = {name: tensor + 1 for name, tensor in before.items()}
    write_state(model, other)
    assert_same(unsharded_state(saved_tensors(model)), other)
    with pytest.raises(ValueError, match="missing .'1.bias'.*unknown .'2.bias'"):
        write_state(model, {"2.bias" if name == "1.bias" else name: tensor for name, tensor in other.items()})
    with pytest.raises(ValueError, match="0.bias: a tensor of the shape"):
        write_state(model, {**other, "0.bias": torch.ones(5)})
