import numpy as np
import pytest
import torch
from PIL import Image

from rfdetr_hf.inference.detector import ImageDetector
from rfdetr_hf.inference.views import (
    AugmentedDetector,
    TiledDetector,
    fuse_views,
    merge_tiles,
    tile_frames,
)


def found(*rows, **extra):
    """Rows (label, score, x1, y1, x2, y2)."""
    rows = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return {"labels": rows[:, 0].long(), "scores": rows[:, 1], "boxes": rows[:, 2:], **extra}


def blobs(images, **options):
    """A detector that finds the bright pixels of each row band: one box per separate block, scored by its size."""
    detections = []
    for image in images:
        bright = np.asarray(image.convert("L")) > 128
        rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
        blocks = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1) if len(columns) else []
        boxes = [(0, len(b) / 100, b[0], rows[0], b[-1] + 1, rows[-1] + 1) for b in blocks]
        detections.append(found(*boxes))
    return detections


def picture(*boxes, size=(200, 120)):
    image = Image.new("RGB", size)
    for box in boxes:
        image.paste((255, 255, 255), box)
    return image


def test_one_view_is_left_as_it_is():
    view = found((0, 0.9, 0, 0, 10, 10), (1, 0.5, 0, 0, 10, 10), (0, 0.3, 1, 1, 11, 11))
    fused = fuse_views([view])
    for name, values in view.items():
        torch.testing.assert_close(fused[name], values)


def test_fusion_weighs_boxes_and_counts_the_silent():
    first = found((0, 0.9, 0, 0, 10, 10), (1, 0.6, 50, 50, 60, 60))
    second = found((0, 0.3, 2, 0, 12, 10), (2, 0.6, 50, 50, 60, 60))
    fused = fuse_views([first, second])
    assert fused["scores"].tolist() == pytest.approx([0.6, 0.3, 0.3])
    assert fused["labels"].tolist() == [0, 1, 2], "classes stay apart"
    assert fused["boxes"][0].tolist() == pytest.approx([0.5, 0, 10.5, 10])
    assert len(fuse_views([first, second], top_k=1)["scores"]) == 1
    apart = fuse_views([first, found((0, 0.3, 6, 0, 16, 10))])
    assert len(apart["scores"]) == 3, "too little overlap"


def test_fusion_of_nothing_and_of_scores_of_zero():
    assert fuse_views([found(), found()])["boxes"].shape == (0, 4)
    fused = fuse_views([found((0, 0.0, 0, 0, 10, 10)), found((0, 0.0, 0, 0, 10, 10))])
    assert fused["boxes"].tolist() == [[0, 0, 10, 10]] and fused["scores"].tolist() == [0]


def test_the_mirror_image_agrees_with_the_image():
    image = picture((10, 20, 50, 60), (120, 20, 140, 60))
    plain, augmented = blobs([image])[0], AugmentedDetector(blobs)([image])[0]
    order = plain["scores"].argsort(descending=True)
    torch.testing.assert_close(augmented["boxes"], plain["boxes"][order])
    torch.testing.assert_close(augmented["scores"], plain["scores"][order])


def test_scales_reach_the_detector():
    seen = []

    def detect(images, scale=1.0):
        seen.append(scale)
        return [found((0, 0.5, 0, 0, 10, 10)) for _ in images]

    AugmentedDetector(detect, flip=True, scales=(1.0, 1.5))([picture()])
    assert seen == [1.0, 1.0, 1.5, 1.5]
    with pytest.raises(ValueError, match="positive"):
        AugmentedDetector(detect, scales=())


@pytest.mark.parametrize(
    ("width", "height", "tile", "overlap"), [(1000, 700, 320, 0.25), (641, 50, 64, 0.0), (65, 64, 64, 0.9)]
)
def test_tiles_cover_the_image(width, height, tile, overlap):
    whole, *frames = tile_frames(width, height, tile, overlap)
    assert whole == (0, 0, width, height)
    covered = np.zeros((height, width), dtype=bool)
    for left, top, right, bottom in frames:
        assert right - left == min(tile, width) and bottom - top == min(tile, height)
        covered[top:bottom, left:right] = True
    assert covered.all()
    assert tile_frames(64, 64, 64, 0.2) == [(0, 0, 64, 64)]


def test_tiles_find_each_object_once():
    image = picture((20, 20, 60, 60), (110, 20, 150, 60), (300, 20, 330, 60), size=(400, 120))
    merged = TiledDetector(blobs, tile=128, overlap=0.3, batch_size=2)([image])[0]
    boxes = sorted(merged["boxes"].int().tolist())
    assert boxes == [[20, 20, 60, 60], [110, 20, 150, 60], [300, 20, 330, 60]]
    with pytest.raises(ValueError, match="overlap"):
        TiledDetector(blobs, overlap=1.0)


def test_pieces_give_way_to_the_whole():
    boxes = ((0, 0.9, 0, 0, 40, 50), (0, 0.6, 0, 0, 100, 50), (1, 0.8, 0, 0, 40, 50), (0, 0.3, 10, 10, 20, 20))
    pieces = found(*boxes, cut=torch.tensor([True, False, True, False]))
    merged = merge_tiles(pieces)
    assert merged["scores"].tolist() == pytest.approx([0.8, 0.6, 0.3]), "the small one is whole, not a piece"
    none_cut = merge_tiles({**pieces, "cut": torch.zeros(4, dtype=torch.bool)})
    assert len(none_cut["scores"]) == 4
    assert len(merge_tiles(found(*boxes, cut=torch.zeros(4, dtype=torch.bool)), iou=0.3)["scores"]) == 3


def test_masks_are_refused():
    with pytest.raises(ValueError, match="boxes alone.*masks"):
        fuse_views([found(masks=torch.zeros(0, 4, 4))])


def test_a_model_as_a_detector(tiny_model):
    from rfdetr_hf import RFDETRImageProcessor

    model = tiny_model()
    detect = ImageDetector(model, RFDETRImageProcessor(size={"height": 64, "width": 64}))
    image = picture((10, 20, 50, 60))
    plain, larger = detect([image])[0], detect([image], scale=1.5)[0]
    assert plain["boxes"].shape == (10, 4) and not torch.equal(plain["boxes"], larger["boxes"])
    assert (plain["boxes"][:, 2] <= 200).all() and (plain["boxes"][:, 3] <= 120).all()
    assert AugmentedDetector(detect, scales=(1.0, 1.5))([image, image])[1]["boxes"].shape[0] >= 10
