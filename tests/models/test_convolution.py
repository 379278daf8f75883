"""The convolution whose derivatives a compiled model takes."""

import pytest
import torch

from rfdetr_hf.models.convolution import convolve

pytestmark = pytest.mark.usefixtures("fresh_graphs")


@pytest.mark.parametrize(
    "module",
    [
        torch.nn.Conv2d(4, 6, 3, padding=1),
        torch.nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
        torch.nn.Conv2d(4, 4, 3, padding=1, groups=4),
        torch.nn.ConvTranspose2d(4, 2, 2, stride=2),
    ],
)
def test_a_compiled_convolution_is_that_of_torch(module):
    compiled = torch.compile(lambda x: convolve(module, x).sin(), backend="aot_eager", fullgraph=True)
    for channels_last in (False, True):
        x = torch.randn(2, 4, 8, 10)
        x = x.to(memory_format=torch.channels_last) if channels_last else x
        x.requires_grad_()
        wanted = [x, *module.parameters()]
        expected, found = module(x).sin(), compiled(x)
        torch.testing.assert_close(found, expected)
        pairs = zip(torch.autograd.grad(found.sum(), wanted), torch.autograd.grad(expected.sum(), wanted), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(one, other)


def test_a_frozen_convolution_gets_no_gradient():
    module = torch.nn.Conv2d(4, 6, 1).requires_grad_(False)
    x = torch.randn(1, 4, 4, 4, requires_grad=True)
    torch.compile(lambda x: convolve(module, x), backend="aot_eager")(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.autograd.grad(module(x).sum(), x)[0])
    assert [parameter.grad for parameter in module.parameters()] == [None, None]
