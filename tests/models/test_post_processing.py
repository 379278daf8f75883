import math
import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils

from rfdetr_hf import RFDETRImageProcessor
from rfdetr_hf.models.post_processing import class_slots, fuse_scores, image_keypoints, image_masks, keypoint_covariance


@pytest.fixture
def processor():
    return RFDETRImageProcessor()


@pytest.fixture
def outputs(rng):
    """Two images, 5 queries, 3 classes, masks, and keypoints of the schema [3, 0, 2] shrunk to two classes below."""
    return SimpleNamespace(
        logits=torch.randn(2, 5, 3, generator=rng),
        pred_boxes=torch.rand(2, 5, 4, generator=rng) * 0.5 + 0.1,
        pred_masks=torch.randn(2, 5, 8, 12, generator=rng),
        pred_keypoints=torch.randn(2, 5, 6, 8, generator=rng),
    )


def test_masks_are_those_of_the_ranked_queries(processor, outputs):
    sizes = [(16, 24), (30, 20)]
    plain = processor.post_process_object_detection(outputs, 0.5, sizes)
    found = processor.post_process_instance_segmentation(outputs, 0.5, sizes)
    for index, (each, reference, size) in enumerate(zip(found, plain, sizes, strict=True)):
        assert list(each) == ["scores", "labels", "boxes", "masks"]
        assert all(torch.equal(each[name], reference[name]) for name in reference)
        assert each["masks"].shape == (len(each["scores"]), *size) and each["masks"].dtype == torch.bool
        for row, (score, label) in enumerate(zip(each["scores"], each["labels"], strict=True)):
            query = (outputs.logits[index, :, label].sigmoid() == score).nonzero().item()
            logits = torch.nn.functional.interpolate(
                outputs.pred_masks[index, query][None, None], size, mode="bilinear"
            )
            assert torch.equal(each["masks"][row], logits[0, 0] > 0)


def test_sizes_of_no_picture_are_refused(processor, outputs):
    with pytest.raises(ValueError, match=r"target_sizes holds \[\[-50, 80\].*positive"):
        processor.post_process_object_detection(outputs, target_sizes=torch.tensor([[-50, 80], [50, 80]]))


def test_without_sizes_masks_stay_as_predicted(processor, outputs):
    masks = processor.post_process_instance_segmentation(outputs, -1)[0]["masks"]
    assert masks.shape == (5, 8, 12)


def test_run_lengths_are_those_of_the_masks(processor, outputs):
    masks = processor.post_process_instance_segmentation(outputs, -1, [(9, 7), (30, 20)])
    coded = processor.post_process_instance_segmentation(outputs, -1, [(9, 7), (30, 20)], as_rle=True)
    for each, other in zip(masks, coded, strict=True):
        decoded = np.stack([mask_utils.decode(rle) for rle in other["masks"]])
        assert np.array_equal(decoded, each["masks"].numpy()) and isinstance(other["masks"][0]["counts"], str)


def test_many_masks_and_none(rng):
    logits = torch.randn(70, 4, 4, generator=rng)
    whole = torch.nn.functional.interpolate(logits[:, None], (10, 9), mode="bilinear")[:, 0] > 0
    assert torch.equal(image_masks(logits, (10, 9)), whole)
    assert len(image_masks(logits, (10, 9), as_rle=True)) == 70
    assert image_masks(logits[:0], (10, 9)).shape == (0, 10, 9)
    assert image_masks(logits[:0], (10, 9), as_rle=True) == []


def test_masks_of_padded_images_are_cut_to_the_image(processor, outputs, rng):
    """What the padding holds does not matter, and the image's part is resized as if it were alone."""
    mask = torch.ones(2, 32, 48)
    mask[1, 16:], mask[1, :, 36:] = 0, 0
    alone = SimpleNamespace(**{**vars(outputs), "pred_masks": outputs.pred_masks[:, :, :4, :9]})
    expected = processor.post_process_instance_segmentation(alone, -1, [(40, 60)] * 2)[1]["masks"]
    outputs.pred_masks[1, :, 4:], outputs.pred_masks[1, :, :, 9:] = 1e3, 1e3
    found = processor.post_process_instance_segmentation(outputs, -1, [(40, 60)] * 2, pixel_mask=mask)
    assert torch.equal(found[1]["masks"], expected)
    whole = processor.post_process_instance_segmentation(outputs, -1, [(40, 60)] * 2)
    assert torch.equal(found[0]["masks"], whole[0]["masks"]) and not torch.equal(found[1]["masks"], whole[1]["masks"])


def test_half_precision_masks(outputs):
    assert image_masks(outputs.pred_masks[0].bfloat16(), (20, 20)).shape == (5, 20, 20)


def test_keypoints_of_the_class_in_pixels(processor, outputs):
    schema = [3, 2]  # the third class has none
    found = processor.post_process_keypoint_detection(outputs, schema, -1, [(100, 200), (50, 60)], top_k=15)
    for index, (each, (height, width)) in enumerate(zip(found, [(100, 200), (50, 60)], strict=True)):
        raw = outputs.logits[index].sigmoid()
        order = raw.flatten().argsort(descending=True)
        assert each["keypoints"].shape == (15, 3, 3) and each["keypoint_covariance"].shape == (15, 3, 2, 2)
        for row, flat in enumerate(order.tolist()):
            query, label = divmod(flat, 3)
            assert each["labels"][row] == label
            count = schema[label] if label < 2 else 0
            slots = outputs.pred_keypoints[index, query, 3 * min(label, 1) :][:count]
            expected = torch.stack([slots[:, 0] * width, slots[:, 1] * height, slots[:, 2].sigmoid()], -1)
            torch.testing.assert_close(each["keypoints"][row, :count], expected)
            torch.testing.assert_close(each["keypoint_precision"][row, :count], slots[:, 4:7])
            assert not each["keypoints"][row, count:].any() and each["keypoint_precision"][row, count:].isnan().all()
            if label == 2:
                assert each["scores"][row] == raw[query, label]


def test_scores_sink_with_the_uncertainty():
    """The formula in plain numbers: the weighted mean of the traces of the covariances."""
    keypoints = torch.tensor([[[0, 0, 1.0, 0, 0.3, 0.5, -0.2, 0], [0, 0, -1.0, 0, -0.4, -0.7, 0.1, 0], [0.0] * 8]])
    active = torch.tensor([[True, True, False]])
    traces, weights = [], []
    for _, _, findable, _, log_l11, l21, log_l22, _ in keypoints[0, :2].tolist():
        l11, l22 = math.exp(log_l11), math.exp(log_l22)
        lower = np.array([[l11, 0], [l21, l22]])
        traces.append(np.trace(np.linalg.inv(lower @ lower.T)))
        weights.append(1 / (1 + math.exp(-findable)))
    x = 0.8 * np.average(traces, weights=weights) ** -0.2
    scores, label = torch.tensor([0.8]), torch.tensor([0])
    assert fuse_scores(scores, keypoints, active, label, 1, 0.2).item() == pytest.approx(x / (1 + x), rel=1e-6)
    assert fuse_scores(scores, keypoints, active, label, 1, 0).item() == scores.item()
    assert fuse_scores(scores, keypoints, active, label, 0, 0.2).item() == scores.item()
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    assert fuse_scores(scores, keypoints, nothing, label, 1, 0.2).item() == pytest.approx(0.8 / 1.8)
    sure = keypoints.clone()
    sure[..., [4, 6]], sure[..., 5] = 60, 0
    assert fuse_scores(scores, sure, active, label, 1, 0.2).item() < 1


def test_threshold_is_that_of_the_lowered_score(processor, outputs):
    everything = processor.post_process_keypoint_detection(outputs, [3, 2], -1)
    some = processor.post_process_keypoint_detection(outputs, [3, 2], 0.4)
    for each, kept in zip(everything, some, strict=True):
        assert torch.equal(kept["scores"], each["scores"][each["scores"] > 0.4])
        assert 0 < len(kept["scores"]) < len(each["scores"])


def test_covariance_inverts_the_precision(rng):
    precision = torch.randn(4, 3, generator=rng, dtype=torch.float64)
    log_l11, l21, log_l22 = precision.unbind(-1)
    lower = torch.stack([log_l11.exp(), torch.zeros_like(l21), l21, log_l22.exp()], -1).unflatten(-1, (2, 2))
    identity = torch.eye(2, dtype=torch.float64).expand(4, -1, -1)
    torch.testing.assert_close(keypoint_covariance(precision) @ (lower @ lower.mT), identity)
    keypoints = torch.cat([torch.zeros(1, 4, 4, dtype=torch.float64), precision[None], torch.zeros(1, 4, 1)], -1)
    pixels = image_keypoints(keypoints, torch.ones(1, 4, dtype=torch.bool), (10, 30))["keypoint_covariance"]
    scale = torch.diag(torch.tensor([30.0, 10.0], dtype=torch.float64))
    torch.testing.assert_close(pixels[0], scale @ keypoint_covariance(precision) @ scale)


def test_another_schema_is_refused(outputs):
    with pytest.raises(ValueError, match="6 slots"):
        class_slots(outputs.pred_keypoints[0], torch.zeros(5, dtype=torch.int64), [4, 2])


@pytest.mark.parametrize("seed", range(24))
def test_run_lengths_of_neighbourhoods_are_those_of_complete_masks(seed):
    rng = np.random.default_rng(seed)
    h, w, height, width = *rng.integers(3, 60, 2).tolist(), *rng.integers(1, 400, 2).tolist()
    y, x = np.mgrid[:h, :w]
    centre, radius = rng.uniform(0, 1, (6, 2)), np.exp(rng.uniform(np.log(0.02), np.log(0.6), 6))
    logits = radius[:, None, None] - np.hypot((x + 0.5) / w - centre[:, :1, None], (y + 0.5) / h - centre[:, 1:, None])
    logits = torch.tensor(40 * logits + rng.choice([0, 3]) * rng.normal(size=logits.shape), dtype=torch.float32)
    logits[0], logits[1] = -5, 5
    share = torch.tensor(rng.uniform(0.3, 1, 2), dtype=torch.float32) if seed % 2 else None
    dense = image_masks(logits, (height, width), share).numpy()
    for mask, rle in zip(dense, image_masks(logits, (height, width), share, as_rle=True), strict=True):
        assert (mask_utils.decode(rle) != mask).sum() <= 1  # a logit of zero may be rounded to either side
        expected = mask_utils.encode(np.asfortranarray(mask_utils.decode(rle)))
        assert rle == {"size": [height, width], "counts": expected["counts"].decode("ascii")}


def test_masks_of_a_large_picture_cost_what_the_objects_cost():
    """300 queries on 12 megapixels: complete masks would be 3.6 GB, 32 of them at a time 400 MB."""
    y, x = np.mgrid[:100, :100] / 100
    centre = np.random.default_rng(0).uniform(0, 1, (300, 2))
    logits = torch.tensor(0.05 - np.hypot(x - centre[:, :1, None], y - centre[:, 1:, None]), dtype=torch.float32)
    # Weights that are not trained give noise, which has objects everywhere.
    logits[:30], logits[30:60] = torch.randn(30, 100, 100, generator=torch.Generator().manual_seed(0)), 1
    tracemalloc.start()
    started = time.process_time()
    masks = image_masks(logits, (3000, 4000), as_rle=True)
    assert time.process_time() - started < 15 and tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
    assert len(masks) == 300
