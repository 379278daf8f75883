import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rfdetr_hf import RFDETRBackboneConfig
from rfdetr_hf.models.backbone import LayerScale
from rfdetr_hf.models.linears import joined, linears, sum_to_autocast

BF16 = torch.bfloat16


def layers(rng, *sizes):
    modules = [nn.Linear(4, size) for size in sizes]
    for module in modules:
        for parameter in module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=rng)
    return modules


def gradients(modules):
    return [parameter.grad for module in modules for parameter in module.parameters()]


@pytest.mark.parametrize("autocast", [False, True])
def test_one_product_equals_several(rng, autocast):
    modules, other, x = layers(rng, 3, 2), layers(rng, 5), torch.randn(6, 4, generator=rng)
    results = []
    for way in ("joined", "apart"):
        for module in modules + other:
            module.zero_grad()
        with torch.autocast("cpu", BF16, enabled=autocast):
            if way == "joined":
                first, second = linears(modules, other)
                outputs = [*first(x).split((3, 2), -1), second(x)]
            else:
                outputs = [module(x) for module in modules + other]
        (sum(output.float().square().sum() for output in outputs)).backward()
        results.append([*outputs, *gradients(modules + other)])
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-2 if autocast else 1e-6, atol=1e-2 if autocast else 1e-6)


@pytest.mark.parametrize("second", [(6, 4), (1, 4)])
def test_a_sum_is_rounded_as_autocast_rounds_it(rng, second):
    first, second = (torch.randn(*shape, generator=rng).requires_grad_() for shape in ((6, 4), second))
    factors = torch.randn(6, 4, generator=rng)
    assert sum_to_autocast(first, second).dtype == torch.float32
    with torch.autocast("cpu", BF16):
        found, plain = sum_to_autocast(first, second).to(BF16), (first + second).to(BF16)
    ours, theirs = (torch.autograd.grad(total, (first, second), factors.to(BF16)) for total in (found, plain))
    assert torch.equal(found, plain) and all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("autocast", [False, True])
def test_stacked_weights(rng, autocast):
    first, second = layers(rng, 3, 3)
    first.bias.requires_grad_(False)
    with torch.autocast("cpu", BF16, enabled=autocast):
        weight, bias = joined([[first.weight, second.weight], [first.bias, second.bias]], stacked=True)
    assert (weight.shape, bias.shape) == ((2, 3, 4), (2, 3)) and weight.dtype == (BF16 if autocast else torch.float32)
    assert torch.equal(weight[1], second.weight.to(weight.dtype)) and torch.equal(bias[0], first.bias.to(bias.dtype))
    ((weight.transpose(1, 2) * torch.arange(2)[:, None, None]).sum() + bias.sum() * 3).backward()
    assert first.weight.grad.eq(0).all() and second.weight.grad.eq(1).all() and second.weight.grad.is_contiguous()
    assert first.bias.grad is None and second.bias.grad.eq(3).all()


def test_frozen_tensors_get_no_gradient(rng):
    frozen, trained, alone = layers(rng, 3, 2, 5)
    frozen.requires_grad_(False)
    alone.requires_grad_(False)
    with torch.autocast("cpu", BF16):
        first, second = joined([[frozen.weight, trained.weight], [alone.weight]])
    assert first.dtype == second.dtype == BF16
    assert first.requires_grad and not second.requires_grad
    first.float().sum().backward()
    assert frozen.weight.grad is None and trained.weight.grad.eq(1).all() and trained.weight.grad.dtype == torch.float32


def test_hooks_are_called(rng):
    """What adapters, quantisation and offloading put in the place of a layer is not passed over."""
    (module,), x, seen = layers(rng, 3), torch.randn(6, 4, generator=rng), []
    handle = module.register_forward_hook(lambda *_: seen.append("hook"))
    assert linears([module])[0](x).shape == (6, 3) and seen == ["hook"]
    (other,) = layers(rng, 2)  # beside it, and joined as before
    results = [function(x) for function in linears([other], [module], [other])]
    assert [tuple(result.shape) for result in results] == [(6, 2), (6, 3), (6, 2)] and seen == ["hook"] * 2
    torch.testing.assert_close(results[2], other(x))
    handle.remove()
    module.forward = lambda x: F.linear(x, module.weight) + 7  # as accelerate does
    torch.testing.assert_close(linears([module])[0](x), x @ module.weight.T + 7)


class Packed(torch.Tensor):
    """A quantised weight as torchao puts it into an `nn.Linear`: one that can be joined with no other."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is F.linear:
            return F.linear(args[0], args[1].as_subclass(torch.Tensor) * 2, *args[2:])
        if function is torch.cat:
            raise NotImplementedError("attempting to run unimplemented operator cat")
        return super().__torch_function__(function, types, args, kwargs or {})

    def __tensor_flatten__(self):
        raise NotImplementedError


def test_weights_of_another_class_are_left_to_their_layers(rng):
    packed, plain, beside = layers(rng, 3, 2, 4)
    x = torch.randn(6, 4, generator=rng)
    expected = torch.cat([x @ packed.weight.T * 2 + packed.bias, plain(x)], -1)
    packed.weight = nn.Parameter(packed.weight.detach().as_subclass(Packed), requires_grad=False)
    assert type(packed) is nn.Linear and isinstance(packed.weight, Packed)
    first, second = linears([packed, plain], [beside])
    torch.testing.assert_close(first(x), expected)
    torch.testing.assert_close(second(x), beside(x))


def test_further_tensors_are_cast_along(rng):
    (module, hooked), tensor = layers(rng, 3, 2), torch.nn.Parameter(torch.ones(2, 2))
    hooked.register_forward_hook(lambda *_: None)
    for modules in ([module], [hooked]):
        with torch.autocast("cpu", BF16):
            function, cast = linears(modules, tensors=[tensor])
            assert function(torch.randn(6, 4, generator=rng)).dtype == cast.dtype == BF16
        assert torch.equal(cast, torch.ones(2, 2, dtype=BF16))
    (unchanged,) = linears(tensors=[tensor])
    assert unchanged.dtype == torch.float32 and torch.equal(unchanged, tensor)


def test_float64_stays_under_autocast(rng):
    (module,) = layers(rng, 3)
    with torch.autocast("cpu", BF16):
        assert joined([[module.double().weight]])[0].dtype == torch.float64


def test_gradient_of_the_layer_scale(rng):
    scale = LayerScale(RFDETRBackboneConfig(hidden_size=4, num_attention_heads=1)).double()
    x, branch = (torch.randn(2, 3, 4, generator=rng, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scale.lambda1.data = torch.randn(4, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(scale(x, branch), x + branch * scale.lambda1)
    assert torch.autograd.gradcheck(lambda a, b, _: scale(a, b), (x, branch, scale.lambda1))
    half = branch.detach().to(BF16).requires_grad_()
    scale.float()(x.detach().float(), half).sum().backward()
    assert half.grad.dtype == BF16
    torch.testing.assert_close(half.grad[0, 0].float(), scale.lambda1.detach(), rtol=1e-2, atol=0)
