import pytest
import torch
import torch.nn.functional as F

from rfdetr_hf.models.projector import ChannelLayerNorm, MultiScaleProjector


def channel_norm(x, state, name, eps=1e-6):
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    scale, shift = state[f"{name}.weight"], state[f"{name}.bias"]
    return (x - mean) / (variance + eps).sqrt() * scale[:, None, None] + shift[:, None, None]


def unit(x, state, name, kernel, activation=F.silu, stride=1):
    x = F.conv2d(x, state[f"{name}.conv.weight"], stride=stride, padding=kernel // 2)
    return activation(channel_norm(x, state, f"{name}.bn"))


def expected_level(maps, state, level, scale):
    """The projector equation by equation, from the state dict alone."""
    sampled = []
    for j, x in enumerate(maps):
        name = f"stages_sampling.{level}.{j}.0"
        if scale == "P3":
            x = F.conv_transpose2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=2)
        if scale == "P5":
            x = unit(x, state, name, 3, F.relu, stride=2)
        sampled.append(x)
    stage = f"stages.{level}"
    y = list(unit(torch.cat(sampled, 1), state, f"{stage}.0.cv1", 1).chunk(2, 1))
    for k in range(3):
        name = f"{stage}.0.m.{k}"
        y.append(unit(unit(y[-1], state, f"{name}.cv1", 3), state, f"{name}.cv2", 3))
    return channel_norm(unit(torch.cat(y, 1), state, f"{stage}.0.cv2", 1), state, f"{stage}.1")


@pytest.mark.parametrize("scales", [["P4"], ["P3", "P5"], ["P3", "P4", "P5"]])
def test_levels_follow_their_equations(deep_config, rng, scales):
    projector = MultiScaleProjector(deep_config(projector_scales=scales)).double()
    with torch.no_grad():
        for parameter in projector.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.2 + (parameter.dim() == 1))
    maps = [torch.randn(2, 48, 3, 5, generator=rng, dtype=torch.float64) for _ in range(2)]
    levels = projector(maps)
    side = {"P3": (6, 10), "P4": (3, 5), "P5": (2, 3)}
    for index, (scale, level) in enumerate(zip(scales, levels, strict=True)):
        assert level.shape == (2, 32, *side[scale])
        torch.testing.assert_close(level, expected_level(maps, projector.state_dict(), index, scale))


def test_names_of_the_two_level_projector(deep_config):
    keys = set(MultiScaleProjector(deep_config(projector_scales=["P3", "P5"])).state_dict())
    assert {"stages_sampling.0.1.0.weight", "stages_sampling.0.1.0.bias", "stages_sampling.1.0.0.conv.weight"} <= keys
    assert {"stages_sampling.1.0.0.bn.bias", "stages.1.0.m.2.cv2.bn.weight", "stages.1.1.bias"} <= keys


def test_channel_norm_normalises_each_pixel(rng):
    norm = ChannelLayerNorm(7, eps=1e-6)
    torch.nn.init.ones_(norm.weight)
    torch.nn.init.zeros_(norm.bias)
    y = norm(torch.randn(2, 7, 3, 4, generator=rng) * 5 + 2)
    torch.testing.assert_close(y.mean(1), torch.zeros(2, 3, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(1, unbiased=False), torch.ones(2, 3, 4))
