import pytest
import torch
import torch._dynamo.testing

from rfdetr_hf import RFDETRBackboneConfig
from rfdetr_hf.models.backbone import (
    RFDETRViTLayer,
    WindowedDinov2,
    drop_path_factors,
    join_windows,
    resize_position_table,
    split_windows,
)
from rfdetr_hf.models.projector import RFDETRBackbone


def small_config(**overrides) -> RFDETRBackboneConfig:
    fields = {"hidden_size": 12, "num_attention_heads": 3, "num_hidden_layers": 3, "out_indices": [1, 2]}
    return RFDETRBackboneConfig(**{**fields, "patch_size": 4, "image_size": 16, **overrides})


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


@pytest.mark.parametrize("windows", [1, 2, 3])
def test_windows_of_a_wide_grid(windows):
    height, width = 6, 12
    grid = torch.arange(2 * height * width).reshape(2, height, width, 1)
    tokens = split_windows(grid, windows)
    rows, columns = height // windows, width // windows
    for image in range(2):
        for i in range(windows):
            for j in range(windows):
                part = grid[image, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
                assert torch.equal(tokens[(image * windows + i) * windows + j], part.reshape(-1, 1))
    assert torch.equal(join_windows(tokens, windows, height, width), grid)


def test_position_table_keeps_constant_and_its_own_size():
    table = torch.arange(4.0).reshape(4, 1)
    torch.testing.assert_close(resize_position_table(table, 2, 2), table)
    torch.testing.assert_close(resize_position_table(torch.full((9, 2), 3.0), 5, 7), torch.full((35, 2), 3.0))


def test_position_table_is_laid_out_height_first():
    rows = torch.arange(4.0)[:, None].expand(4, 4).reshape(16, 1)  # the value is the row
    resized = resize_position_table(rows, 2, 8).reshape(2, 8)
    assert (resized[1] > resized[0]).all()
    torch.testing.assert_close(resized, resized[:, :1].expand(2, 8))


def test_position_table_is_used_as_it_is_on_its_own_grid():
    embeddings = randomised(WindowedDinov2(small_config())).embeddings
    assert embeddings.positions(4, 4).data_ptr() == embeddings.position_embeddings[0, 1:].data_ptr()
    assert embeddings.positions(2, 8).shape == (16, 12)


def test_windowed_block_sees_its_window_only_and_a_tapped_index_all():
    windowed, joined = (randomised(RFDETRViTLayer(small_config(), index)).eval() for index in (0, 1))
    tokens = torch.randn(4, 5, 12, generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[3] = tokens[0]
    assert torch.equal(windowed(tokens)[:3], windowed(changed)[:3])
    assert not torch.allclose(joined(tokens)[0], joined(changed)[0])


def test_images_of_a_batch_do_not_mix():
    vit = randomised(WindowedDinov2(small_config())).eval()
    pixels = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    batched, alone = vit(pixels), vit(pixels[1:])
    for both, single in zip(batched, alone, strict=True):
        torch.testing.assert_close(both[1:], single)


def test_maps_have_the_shape_of_the_patch_grid():
    maps = randomised(WindowedDinov2(small_config())).eval()(torch.zeros(1, 3, 16, 24))
    assert [tuple(x.shape) for x in maps] == [(1, 12, 4, 6)] * 2


def test_blocks_after_the_last_tap_do_not_run():
    vit = randomised(WindowedDinov2(small_config()))
    assert vit.unused_layers == [vit.layers[2]]
    vit.layers[2].forward = None
    vit(torch.zeros(1, 3, 16, 16))


def test_drop_path_drops_rows_and_keeps_the_mean():
    torch.manual_seed(0)
    factors = drop_path_factors(torch.ones(4000, 2, 3), 0.25)
    rows = factors[:, 0, 0]
    assert factors.shape == (4000, 1, 1)
    torch.testing.assert_close(rows.unique(), torch.tensor([0.0, 4 / 3]))
    assert rows.mean().item() == pytest.approx(1.0, abs=0.03)


def test_drop_path_rates_rise_linearly_and_can_start_from_zero():
    vit = randomised(WindowedDinov2(small_config())).train()
    assert vit.block_rates() == [0.0, 0.0, 0.0]
    pixels = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before = vit(pixels)[-1]
    assert vit.block_rates(0.4) == [0.0, 0.2, 0.4]
    assert not torch.allclose(vit(pixels, vit.drop_path(8, 0.4))[-1], before)
    assert vit.eval().drop_path(8, 0.4) is None


def test_rate_of_the_configuration_is_the_default():
    assert WindowedDinov2(small_config(drop_path_rate=0.2)).block_rates()[-1] == 0.2


def test_blocks_are_compiled_for_any_rate_at_once():
    vit = randomised(WindowedDinov2(small_config(num_hidden_layers=12, out_indices=[6, 12]))).train()
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    for layer in vit.layers:
        layer.compile(backend=counter)
    for rate in (0.0, 0.1, 0.2, 0.3):
        vit(torch.zeros(2, 3, 16, 16), vit.drop_path(2, rate))
    # With and without factors, windows joined or not.
    assert counter.frame_count <= 4


@pytest.mark.parametrize(("height", "width"), [(64, 80), (48, 64)])
def test_size_error_names_the_sizes(deep_config, height, width):
    with pytest.raises(ValueError, match=f"{height} x {width} pixels.*16 x 2 = 32.*to 64 x (96|64)"):
        RFDETRBackbone(deep_config())(torch.zeros(1, 3, height, width))


@pytest.mark.parametrize("shape", [(1, 4, 64, 64), (3, 64, 64)])
def test_channel_error_names_the_shape(deep_config, shape):
    with pytest.raises(ValueError, match=r"shape \(batch, 3, H, W\)"):
        RFDETRBackbone(deep_config())(torch.zeros(shape))
