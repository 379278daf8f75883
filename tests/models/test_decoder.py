import math

import pytest
import torch
import torch.nn.functional as F

from rfdetr_hf.models import decoder
from rfdetr_hf.models.decoder import (
    DeformableAttention,
    GroupSelfAttention,
    RFDETRTransformer,
    flatten_levels,
    weighted_reads,
)
from rfdetr_hf.models.geometry import sampling_frames
from rfdetr_hf.models.linears import linears


@pytest.fixture
def randomise(rng):
    def fill(module):
        with torch.no_grad():
            for parameter in module.double().parameters():
                noise = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
                parameter.copy_(noise * 0.3 + (parameter.dim() == 1))
        return module

    return fill


def two_levels(rng, batch=2, channels=32):
    maps = [torch.randn(batch, channels, *shape, generator=rng, dtype=torch.float64) for shape in [(4, 6), (2, 3)]]
    mask = torch.ones(batch, 16, 24)
    mask[1, :, 16:] = 0
    return maps, mask


def bilinear(image, x, y):
    """Value of image (C, h, w) at the normalised point; zero outside, cell centres at (i + 1/2) / size."""
    channels, height, width = image.shape
    column, row = x * width - 0.5, y * height - 0.5
    total = torch.zeros(channels, dtype=image.dtype)
    for r in (math.floor(row), math.floor(row) + 1):
        for c in (math.floor(column), math.floor(column) + 1):
            if 0 <= r < height and 0 <= c < width:
                total += (1 - abs(row - r)) * (1 - abs(column - c)) * image[:, r, c]
    return total


@pytest.mark.parametrize("kept", [{"cpu"}, set()])
def test_reads_that_are_made_again_have_the_same_derivatives(rng, monkeypatch, kept):
    monkeypatch.setattr(decoder, "_KEEPS_READS", kept)
    options = {"generator": rng, "dtype": torch.float64}
    image, grid = torch.randn(4, 3, 5, 6, **options), torch.rand(4, 7, 2, 2, **options) * 2 - 1
    weights = torch.rand(2, 2, 1, 7, 2, **options)
    tensors = [tensor.requires_grad_() for tensor in (image, grid, weights)]
    assert torch.autograd.gradcheck(weighted_reads, tensors)
    read = F.grid_sample(image, grid, align_corners=False).unflatten(0, (2, 2))
    plain = (read * weights).sum(-1)
    with torch.no_grad():
        assert torch.equal(weighted_reads(*tensors), plain)
    found = weighted_reads(*tensors)
    factors = torch.randn(found.shape, **options)
    ours, theirs = (torch.autograd.grad(result, tensors, factors) for result in (found, plain))
    assert torch.equal(found, plain) and all(map(torch.equal, ours, theirs))


def test_memory_of_two_levels(rng):
    maps, mask = two_levels(rng)
    memory = flatten_levels(maps, mask)
    assert memory.tokens.shape == (2, 30, 32)
    assert torch.equal(memory.tokens[1, 24 + 4], maps[1][1, :, 1, 1])
    assert memory.padding[0].sum() == 0
    assert memory.padding[1, :24].reshape(4, 6)[:, 4:].all()
    torch.testing.assert_close(memory.valid_ratios[1], torch.tensor([[4 / 6, 1.0], [2 / 3, 1.0]], dtype=torch.float64))
    assert (memory.anchors[memory.invalid] == 0).all()
    assert memory.invalid[1][memory.padding[1]].all()


def test_memory_without_a_mask_equals_one_without_padding(rng):
    maps, mask = two_levels(rng)
    plain, full = flatten_levels(maps, None), flatten_levels(maps, torch.ones_like(mask))
    assert plain.padding is None and plain.valid_ratios is None and (full.valid_ratios == 1).all()
    for name in ("tokens", "anchors", "invalid"):
        assert torch.equal(getattr(plain, name), getattr(full, name))


def test_deformable_attention_equals_a_loop_over_points(deep_config, randomise, rng):
    config = deep_config(projector_scales=["P3", "P5"], decoder_n_points=3)
    attention = randomise(DeformableAttention(config))
    maps, mask = two_levels(rng)
    memory = flatten_levels(maps, mask)
    query = torch.randn(2, 5, 32, generator=rng, dtype=torch.float64)
    reference = torch.rand(2, 5, 2, 4, generator=rng, dtype=torch.float64)
    value = attention.value_proj(memory.tokens).masked_fill(memory.padding[..., None], 0.0)
    offsets = attention.sampling_offsets(query).reshape(2, 5, 4, 2, 3, 2)
    weights = attention.attention_weights(query).reshape(2, 5, 4, 6).softmax(-1).reshape(2, 5, 4, 2, 3)
    expected = torch.zeros(2, 5, 32, dtype=torch.float64)
    for b in range(2):
        images = [x.T.reshape(32, *s) for x, s in zip(value[b].split([24, 6]), memory.shapes, strict=True)]
        for q in range(5):
            for head in range(4):
                part = slice(head * 8, head * 8 + 8)
                for level in range(2):
                    box = reference[b, q, level]
                    for point in range(3):
                        at = box[:2] + offsets[b, q, head, level, point] / 3 * box[2:] * 0.5
                        read = bilinear(images[level][part], *at.tolist())
                        expected[b, q, part] += weights[b, q, head, level, point] * read
    functions = linears(*attention.layers())
    found, given = attention(
        query, sampling_frames(reference, 3), memory.tokens, memory.shapes, memory.padding, *functions
    )
    torch.testing.assert_close(found, attention.output_proj(expected))
    assert torch.equal(given, weights)


def test_self_attention_equals_torch_and_stays_inside_a_group(deep_config, randomise, rng):
    attention = randomise(GroupSelfAttention(deep_config())).eval()
    theirs = torch.nn.MultiheadAttention(32, 4, batch_first=True, dtype=torch.float64)
    theirs.load_state_dict(attention.state_dict())
    x, position = torch.randn(2, 2, 12, 32, generator=rng, dtype=torch.float64)
    ours, weights = attention(x, position, 3, attention.out_proj, [attention.in_proj_weight, attention.in_proj_bias])
    assert weights is None
    for group in range(3):
        rows = slice(4 * group, 4 * group + 4)
        query = (x + position)[:, rows]
        torch.testing.assert_close(ours[:, rows], theirs(query, query, x[:, rows], need_weights=False)[0])


def test_padded_cells_are_hidden_from_detector_and_attention(deep_config, randomise, rng):
    config = deep_config(projector_scales=["P3", "P5"])
    transformer, attention = randomise(RFDETRTransformer(config)), randomise(DeformableAttention(config))
    maps, mask = two_levels(rng)
    memory = flatten_levels(maps, mask)
    noise = torch.randn(memory.tokens.shape, generator=rng, dtype=torch.float64) * memory.padding[..., None]
    other = memory._replace(tokens=memory.tokens + noise)
    assert torch.equal(transformer.propose(memory, 3).boxes, transformer.propose(other, 3).boxes)
    query = torch.randn(2, 5, 32, generator=rng, dtype=torch.float64)
    reference = torch.rand(2, 5, 2, 4, generator=rng, dtype=torch.float64)
    frames, functions = sampling_frames(reference, config.decoder_n_points), linears(*attention.layers())
    found = [attention(query, frames, m.tokens, m.shapes, m.padding, *functions)[0] for m in (memory, other)]
    assert torch.equal(*found)


def loop_proposals(transformer, memory, groups):
    """The two-stage head written as a loop over groups, boxes and logits of every cell computed first."""
    tokens = memory.tokens.masked_fill(memory.invalid[..., None], 0.0)
    logits, boxes = [], []
    for g in range(groups):
        features = transformer.enc_output_norm[g](transformer.enc_output[g](tokens))
        scores = transformer.enc_out_class_embed[g](features)
        best = scores.amax(-1).topk(min(transformer.num_queries, tokens.shape[1])).indices[..., None]
        delta = transformer.enc_out_bbox_embed[g](features)
        size = memory.anchors[..., 2:]
        box = torch.cat([delta[..., :2] * size + memory.anchors[..., :2], delta[..., 2:].exp() * size], -1)
        logits.append(scores.gather(1, best.expand(-1, -1, scores.shape[-1])))
        boxes.append(box.gather(1, best.expand(-1, -1, 4)))
    return torch.cat(logits, 1), torch.cat(boxes, 1)


@pytest.mark.parametrize("groups", [1, 3])
def test_batched_proposals_equal_a_loop_over_groups_with_gradients(deep_config, randomise, rng, groups):
    transformer = randomise(RFDETRTransformer(deep_config(projector_scales=["P3", "P5"])))
    maps, mask = two_levels(rng)
    maps = [x.requires_grad_() for x in maps]

    def gradients(logits, boxes):
        wanted = [*maps, *transformer.enc_output.parameters(), *transformer.enc_out_bbox_embed.parameters()]
        wanted += [*transformer.enc_output_norm.parameters(), *transformer.enc_out_class_embed.parameters()]
        return torch.autograd.grad(logits.square().sum() + boxes.square().sum(), wanted, allow_unused=True)

    ours = transformer.propose(flatten_levels(maps, mask), groups)
    logits, boxes = loop_proposals(transformer, flatten_levels(maps, mask), groups)
    torch.testing.assert_close(ours.logits, logits)
    torch.testing.assert_close(ours.boxes, boxes)
    for a, b in zip(gradients(ours.logits, ours.boxes), gradients(logits, boxes), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_invalid_cells_stay_in_the_ranking_and_give_zero_boxes(deep_config, randomise, rng):
    transformer = randomise(RFDETRTransformer(deep_config(num_queries=24)))
    maps = [torch.randn(1, 32, 4, 6, generator=rng, dtype=torch.float64)]
    mask = torch.ones(1, 16, 24)
    mask[:, :, 16:] = 0
    boxes = transformer.propose(flatten_levels(maps, mask), 1).boxes
    assert boxes.shape == (1, 24, 4)
    assert int((boxes == 0).all(-1).sum()) == 8


def test_references_combine_learned_deltas_and_proposals_without_gradient(deep_config, rng):
    transformer = RFDETRTransformer(deep_config())
    boxes = torch.rand(2, 4, 4, generator=rng, requires_grad=True)
    learned = torch.randn(6, 4, generator=rng, requires_grad=True)
    references = transformer.references(learned, boxes)
    size = boxes[..., 2:]
    expected = torch.cat([learned[:4, :2] * size + boxes[..., :2], learned[:4, 2:].exp() * size], -1)
    torch.testing.assert_close(references[:, :4], expected)
    assert torch.equal(references[:, 4:], learned[4:].expand(2, -1, -1))
    references.sum().backward()
    assert boxes.grad is None
    assert learned.grad is not None


def test_query_position_uses_the_first_level_and_valid_ratios(deep_config, randomise, rng, monkeypatch):
    decoder = randomise(RFDETRTransformer(deep_config(projector_scales=["P3", "P5"]))).decoder
    maps, mask = two_levels(rng)
    memory = flatten_levels(maps, mask)
    seen = []
    monkeypatch.setattr(decoder.layers[0], "forward", lambda x, _, frames, *rest: seen.append(frames) or (x, None, x))
    references = torch.rand(2, 6, 4, generator=rng, dtype=torch.float64)
    decoder(torch.zeros(2, 6, 32, dtype=torch.float64), references, memory, 1)
    expected = references[1] * torch.tensor([4 / 6, 1.0, 4 / 6, 1.0], dtype=torch.float64)
    torch.testing.assert_close(seen[0][1, :, 0], sampling_frames(expected, decoder.points))
    torch.testing.assert_close(seen[0][0, :, 1], sampling_frames(references[0], decoder.points))


def test_feed_forward_dropout_is_off_in_evaluation(deep_config, randomise, rng):
    layer = randomise(RFDETRTransformer(deep_config(dropout=0.5)).decoder.layers[0])
    x = torch.randn(1, 6, 32, generator=rng, dtype=torch.float64)
    memory = flatten_levels([torch.randn(1, 32, 4, 4, generator=rng, dtype=torch.float64)], None)
    reference = torch.rand(1, 6, 1, 4, generator=rng, dtype=torch.float64)

    def run(groups):
        return layer(x, x, reference, memory.tokens, memory.shapes, None, groups)[0]

    layer.eval()
    assert torch.equal(run(1), run(1))
    layer.train()
    assert not torch.equal(run(3), run(3))
    assert F.relu(layer.linear1(x)).shape[-1] == 48
