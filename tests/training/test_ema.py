import math
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rfdetr_hf import ExponentialMovingAverage
from rfdetr_hf.training.ema import averaged_tensors


class Net(nn.Module):
    """Parameters (one frozen), float and integer buffers, a transient buffer and a tied weight."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.Parameter(torch.randn(2), requires_grad=False)
        self.tied = nn.Linear(4, 3, bias=False)
        self.tied.weight = self.linear.weight
        self.register_buffer("empty", torch.zeros(0, 0))
        self.register_buffer("transient", torch.ones(2), persistent=False)

    def forward(self, x):
        return self.norm(self.linear(x))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def disturb(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
        model.norm.running_mean.add_(1)
        model.norm.num_batches_tracked.add_(1)


def snapshot(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_tensors_are_the_live_state_without_transients_and_ties_once(net):
    named = dict(averaged_tensors(net))
    assert set(named) == set(net.state_dict()) - {"tied.weight"}
    assert named["linear.weight"] is net.linear.weight
    assert named["norm.running_mean"] is net.norm.running_mean


@pytest.mark.parametrize("tau", [0.0, 5.0])
def test_update_follows_the_formula(net, tau):
    ema = ExponentialMovingAverage(averaged_tensors(net), decay=0.9, tau=tau)
    expected = {name: tensor.double() for name, tensor in snapshot(net).items()}
    for u in range(1, 21):
        disturb(net, u)
        assert ema.update(u)
        d = 0.9 if tau == 0 else 0.9 * (1 - math.exp(-u / tau))
        assert ema.current_decay() == pytest.approx(d, rel=1e-15)
        for name, live in net.state_dict().items():
            expected[name] += (1 - d) * (live.double() - expected[name])
    for name, shadow in ema.state_dict().items():
        if shadow.is_floating_point():
            torch.testing.assert_close(shadow.double(), expected[name], rtol=1e-6, atol=1e-6)
    assert torch.equal(ema.state_dict()["norm.num_batches_tracked"], net.norm.num_batches_tracked)
    assert ema.num_updates == 20


def test_first_update_takes_nearly_all_of_the_weights(net):
    ema = ExponentialMovingAverage(averaged_tensors(net))
    before = snapshot(net)["linear.weight"]
    disturb(net, 1)
    ema.update(1)
    d = 0.993 * (1 - math.exp(-0.01))
    expected = before + (1 - d) * (net.linear.weight.detach() - before)
    torch.testing.assert_close(ema.state_dict()["linear.weight"], expected)


def test_interval_counts_updates_not_steps(net):
    ema = ExponentialMovingAverage(averaged_tensors(net), update_interval=3)
    assert [ema.update(step) for step in range(1, 8)] == [False, False, True, False, False, True, False]
    assert ema.num_updates == 2


@pytest.mark.parametrize(
    ("dtype", "shadow_dtype"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_shadow_type(net, dtype, shadow_dtype):
    net.to(dtype)
    ema = ExponentialMovingAverage(averaged_tensors(net), decay=0.5, tau=0)
    start = net.linear.weight.detach().clone()
    disturb(net, 1)
    ema.update(1)
    shadow = ema.state_dict()["linear.weight"]
    assert shadow.dtype == shadow_dtype
    middle = (start.to(shadow_dtype) + net.linear.weight.detach().to(shadow_dtype)) / 2
    torch.testing.assert_close(shadow, middle)
    with ema.swap():
        assert net.linear.weight.dtype == dtype
        assert torch.equal(net.linear.weight, shadow.to(dtype))


def test_small_changes_are_not_lost_in_bfloat16(net):
    net.to(torch.bfloat16)
    with torch.no_grad():
        net.linear.weight.fill_(1.0)
    ema = ExponentialMovingAverage(averaged_tensors(net), decay=0.999, tau=0)
    with torch.no_grad():
        net.linear.weight.fill_(1.0078125)
    for step in range(1, 101):
        ema.update(step)
    moved = ema.state_dict()["linear.weight"] - 1
    torch.testing.assert_close(moved, torch.full_like(moved, 0.0078125 * (1 - 0.999**100)), rtol=1e-2, atol=0)


def test_shadow_shares_no_memory_with_the_model(net):
    ema = ExponentialMovingAverage(averaged_tensors(net))
    live = {tensor.data_ptr() for _, tensor in averaged_tensors(net) if tensor.numel()}
    assert not live & {tensor.data_ptr() for tensor in ema.state_dict().values() if tensor.numel()}
    before = snapshot(net)
    disturb(net, 1)
    assert torch.equal(ema.state_dict()["linear.weight"], before["linear.weight"])
    ema.update(1)
    disturbed = snapshot(net)
    with ema.swap():
        pass
    assert equal(snapshot(net), disturbed)


def test_swap_gives_the_average_and_takes_it_back_bit_for_bit(net):
    ema = ExponentialMovingAverage(averaged_tensors(net), decay=0.9, tau=0)
    disturb(net, 1)
    with torch.no_grad():
        net.linear.bias[0] = float("nan")
    own = snapshot(net)
    ema.update(1)
    shadow = {name: tensor.clone() for name, tensor in ema.state_dict().items()}
    with ema.swap():
        assert torch.equal(net.linear.weight, shadow["linear.weight"])
        assert net.tied.weight is net.linear.weight
        disturb(net, 2)
    after = snapshot(net)
    assert all(after[name].numpy().tobytes() == own[name].numpy().tobytes() for name in own)
    assert all(
        torch.equal(tensor.nan_to_num() if tensor.is_floating_point() else tensor, shadow[name].nan_to_num())
        for name, tensor in ema.state_dict().items()
    )


def test_swap_restores_after_an_exception(net):
    ema = ExponentialMovingAverage(averaged_tensors(net), decay=0.9, tau=0)
    disturb(net, 1)
    own = snapshot(net)
    with pytest.raises(KeyboardInterrupt), ema.swap():
        assert not torch.equal(net.linear.weight, own["linear.weight"])
        raise KeyboardInterrupt
    assert equal(snapshot(net), own)
    ema.update(1)


def test_swap_that_fails_half_way_restores(net, monkeypatch):
    ema = ExponentialMovingAverage(averaged_tensors(net), decay=0.9, tau=0)
    disturb(net, 1)
    own = snapshot(net)
    ema._shadow["norm.running_var"] = torch.zeros(7)
    with pytest.raises(RuntimeError, match="size"), ema.swap():
        pytest.fail("the block must not run")
    assert equal(snapshot(net), own)


def test_training_goes_on_after_a_swap_as_if_nothing_had_been(net):
    def run(swaps):
        torch.manual_seed(3)
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        ema = ExponentialMovingAverage(averaged_tensors(model))
        for step in range(1, 5):
            model(torch.randn(6, 4)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            ema.update(step)
            if swaps:
                with ema.swap(), torch.no_grad():
                    model.eval()(torch.ones(2, 4))
                model.train()
        return snapshot(model), ema.state_dict()

    plain, swapped = run(False), run(True)
    assert equal(plain[0], swapped[0])
    assert equal(plain[1], swapped[1])


def test_misuse_is_an_error(net):
    ema = ExponentialMovingAverage(averaged_tensors(net))
    with pytest.raises(RuntimeError, match="nothing to restore"):
        ema.restore()
    with ema.swap():
        with pytest.raises(RuntimeError, match="restore the model's own weights"):
            ema.update(1)
        with pytest.raises(RuntimeError, match="in the model's place already"):
            ema.store()
        with pytest.raises(RuntimeError, match="in the model's place already"), ema.swap():
            pytest.fail("the block must not run")
    for options in ({"decay": 1.5}, {"tau": -1}, {"update_interval": 0}):
        with pytest.raises(ValueError, match="moving average must"):
            ExponentialMovingAverage(averaged_tensors(net), **options)


def test_resume_through_safetensors_is_exact(net, tmp_path):
    ema = ExponentialMovingAverage(averaged_tensors(net))
    for step in range(1, 4):
        disturb(net, step)
        ema.update(step)
    save_file(ema.state_dict(), tmp_path / "ema.safetensors")
    resumed = ExponentialMovingAverage(averaged_tensors(net))
    resumed.load_state_dict(load_file(tmp_path / "ema.safetensors"), num_updates=3)
    disturb(net, 4)
    for each in (ema, resumed):
        each.update(4)
    assert equal(ema.state_dict(), resumed.state_dict())


def test_putting_it_in_place_is_for_good_and_announces_itself(net):
    entered = []

    @contextmanager
    def writing():
        entered.append("in")
        yield
        entered.append("out")

    ema = ExponentialMovingAverage(averaged_tensors(net), decay=0.9, tau=0, writing=writing)
    disturb(net, 1)
    ema.update(1)
    with ema.swap():
        assert entered == ["in", "out"]
    ema.put_in_place()
    assert entered == ["in", "out"] * 3
    assert equal(dict(averaged_tensors(net)), ema.state_dict())


def test_wrong_layouts_are_named(net):
    ema = ExponentialMovingAverage(averaged_tensors(net))
    tensors = dict(ema.state_dict())
    with pytest.raises(ValueError, match=r"frozen is \(3,\) there, \(2,\) here"):
        ema.load_state_dict(tensors | {"frozen": torch.zeros(3)}, 1)
    del tensors["linear.bias"]
    with pytest.raises(ValueError, match="missing there \\['linear.bias'\\]"):
        ema.load_state_dict(tensors, 1)
    with pytest.raises(ValueError, match="unknown here \\['other'\\]"):
        ema.load_state_dict(dict(ema.state_dict()) | {"other": torch.zeros(1)}, 1)


def test_local_shards_average_like_the_whole(net):
    """The average of a shard is the shard of the average: nothing in an update needs the whole tensor."""
    whole = ExponentialMovingAverage(averaged_tensors(net))
    weight = net.linear.weight.data
    sharded = ExponentialMovingAverage([("a", weight[:2]), ("b", weight[2:]), ("none", weight[3:])])
    for step in range(1, 4):
        disturb(net, step)
        whole.update(step)
        sharded.update(step)
    parts = sharded.state_dict()
    assert torch.equal(torch.cat([parts["a"], parts["b"]]), whole.state_dict()["linear.weight"])


def test_a_shard_that_moves_to_other_memory_is_followed():
    held = {"weight": torch.zeros(2)}
    ema = ExponentialMovingAverage([("weight", torch.empty(4))], decay=0.5, tau=0, local=lambda whole: held["weight"])
    held["weight"] = torch.ones(2)
    ema.update(1)
    assert ema.state_dict()["weight"].tolist() == [0.5, 0.5]
    with ema.swap():
        assert held["weight"].tolist() == [0.5, 0.5]
        held["weight"] = torch.zeros(2)
    assert held["weight"].tolist() == [1, 1]
