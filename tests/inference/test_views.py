import numpy as np
import pytest
import torch
from PIL import Image

from rfdetr_hf import AugmentedDetector, ImageDetector, RFDETRImageProcessor, TiledDetector, with_views
from rfdetr_hf.arguments.views import ViewArguments
from rfdetr_hf.inference.views import fuse_views, merge_tiles, tile_frames


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


class Frame:
    """An image that knows where it was cut from."""

    def __init__(self, width, height, frame=None):
        self.width, self.height, self.size = width, height, (width, height)
        self.frame = frame or (0, 0, width, height)

    def crop(self, frame):
        return Frame(frame[2] - frame[0], frame[3] - frame[1], frame)


def seeing(objects, size, least=8):
    """A detector that sees what a frame shows of objects (box, score in the complete image, score in tiles).

    Of an object it sees `least` pixels of each side, or all of it.
    """

    def detect(frames):
        detections = []
        for left, top, right, bottom in (each.frame for each in frames):
            rows = []
            for (x1, y1, x2, y2), complete, tiles in objects:
                box = (max(x1, left) - left, max(y1, top) - top, min(x2, right) - left, min(y2, bottom) - top)
                score = complete if (right - left, bottom - top) == size else tiles
                if score and min(box[2] - box[0], box[3] - box[1]) >= min(least, x2 - x1, y2 - y1):
                    rows.append((0, score, *box))
            detections.append(found(*rows))
        return detections

    return detect


def merged(objects, size=(1600, 1200), tile=640, overlap=0.2, least=8):
    result = TiledDetector(seeing(objects, size, least), tile=tile, overlap=overlap)([Frame(*size)])[0]
    return sorted(result["boxes"].round().int().tolist())


@pytest.mark.parametrize("complete", [0.1, 0.4, 0.46, 0.95])
def test_a_large_object_is_one_whatever_its_pieces_score(complete):
    assert merged([((100, 100, 1400, 1000), complete, 0.9)]) == [[100, 100, 1400, 1000]]


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.3])
@pytest.mark.parametrize(
    "box", [(450, 100, 690, 260), (500, 400, 1300, 1100), (630, 500, 650, 700), (0, 0, 1600, 1200)]
)
def test_an_object_on_seams_and_corners_that_only_tiles_see_is_one(box, overlap):
    assert merged([(box, 0, 0.9)], overlap=overlap) == [list(box)]


def test_neighbours_stay_two():
    seen_at_once = [((100, 100, 200, 200), 0.9, 0), ((130, 100, 230, 200), 0.8, 0)]
    assert len(merged(seen_at_once)) == 2, "IoU .54 in one view"
    both = [(box, 0.9, 0.8) for box, *_ in seen_at_once]
    assert len(merged(both)) == 2, "and in tiles"
    inside = [((0, 0, 1200, 1100), 0.9, 0), ((200, 200, 240, 240), 0, 0.8)]
    assert len(merged(inside)) == 2, "a small one that is not cut, within a large one"
    in_a_row = [((500, 100, 570, 200), 0, 0.9), ((572, 100, 700, 200), 0, 0.9)]
    assert len(merged(in_a_row)) == 2, "one ends in the overlap where the other begins"


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("side", [4, 8, 12, 16, 30, 70, 150, 600, 1100])
def test_an_object_anywhere_beside_seams_and_corners_is_one(side, overlap):
    """Each side of it at each distance from a border of a tile, which it touches, crosses or stands before."""
    size = (1600, 1200)
    frames = tile_frames(*size, 640, overlap)
    for axis in (0, 1):
        borders = sorted({frame[at] for frame in frames for at in (axis, axis + 2)} - {0, size[axis]})
        for index, distance in enumerate(range(-21, 22, 3)):
            corner = [borders[index % len(borders)] + distance - index % 2 * side, (250, 620, 509)[index % 3]]
            x, y = (min(max(at, 0), size[k] - side) for k, at in enumerate(corner if axis == 0 else corner[::-1]))
            box = (x, y, x + side, y + side)
            complete = (0, 0.4)[index % 2]
            assert merged([(box, complete, 0.9)], size, overlap=overlap, least=1) == [list(box)], distance


@pytest.mark.parametrize("gap", [0, 1, 6])
@pytest.mark.parametrize("side", [4, 8, 16, 40])
def test_neighbours_anywhere_beside_a_seam_are_two(side, gap):
    for left in range(490, 660, 3):
        first, second = (
            (left, 300, left + side, 300 + side),
            (left + side + gap, 300, left + 2 * side + gap, 300 + side),
        )
        pair = [(first, 0, 0.9), (second, 0, 0.8)]
        assert merged(pair) == [list(first), list(second)], left
        upright = [((y1, x1, y2, x2), *scores) for (x1, y1, x2, y2), *scores in pair]
        assert merged(upright) == sorted(list(box) for box, *_ in upright), left


def test_a_small_object_anywhere_in_a_large_one_is_another(side=12):
    for left in range(480, 700, 3):
        outer, inner = (460, 460, 720, 700), (left, left - 10, left + side, left - 10 + side)
        assert merged([(outer, 0.9, 0.8), (inner, 0, 0.7)]) == sorted([list(outer), list(inner)]), left


def test_boxes_that_err_by_a_part_of_their_side_are_one():
    rng, wrong, total = np.random.default_rng(0), 0, 0
    for _ in range(150):
        side = int(rng.choice([16, 40, 100, 300]))
        x, y = int(rng.integers(480, 660)), int(rng.integers(100, 1200 - side))
        detect = seeing([((x, y, x + side, y + side), 0, 0.9)], (1600, 1200))

        def err(frames, detect=detect):
            found = detect(frames)
            for each in found:
                sides = each["boxes"][:, 2:] - each["boxes"][:, :2]
                each["boxes"] += torch.from_numpy(rng.normal(0, 0.03, (len(sides), 4))).float() * sides.repeat(1, 2)
            return found

        (found_,) = TiledDetector(err)([Frame(1600, 1200)])
        wrong, total = wrong + (len(found_["scores"]) != 1), total + 1
    assert wrong <= 0.02 * total


def test_planted_objects_are_counted_once():
    rng, wrong, total = np.random.default_rng(0), 0, 0
    for _ in range(60):
        width, height = rng.integers(700, 2200, 2).tolist()
        boxes = []
        for _ in range(40):
            size = np.minimum(np.exp(rng.uniform(np.log(5), np.log(1200), 2)), (width, height))
            corner = rng.uniform(0, (width - size[0], height - size[1]))
            box = np.concatenate([corner, corner + size]).round()
            apart = all((box[:2] >= other[2:] + 4).any() or (other[:2] >= box[2:] + 4).any() for other in boxes)
            if apart and len(boxes) < 8:
                boxes.append(box)
        objects = [(tuple(box.tolist()), *rng.choice([0.4, 0.9], 2)) for box in boxes]
        tile, overlap = int(rng.choice([320, 480, 640])), float(rng.choice([0.1, 0.2, 0.4]))
        result = merged(objects, (width, height), tile, overlap)
        expected = [list(map(int, box)) for box, *_ in objects]
        wrong += len(set(map(tuple, result)) ^ set(map(tuple, expected)))
        total += len(expected)
    assert total > 200 and wrong <= total * 0.01


def test_detections_of_one_frame_never_suppress_each_other():
    one = found((0, 0.9, 0, 0, 10, 10), (0, 0.5, 0, 0, 10, 10), (1, 0.6, 0, 0, 10, 10))
    assert merge_tiles([one], [(0, 0, 20, 20)], (20, 20))["scores"].tolist() == pytest.approx([0.9, 0.6, 0.5])
    assert len(merge_tiles([one], [(0, 0, 20, 20)], (20, 20), top_k=2)["scores"]) == 2
    assert merge_tiles([found()], [(0, 0, 20, 20)], (20, 20))["boxes"].shape == (0, 4)


def test_only_detections_of_frames_that_meet_are_compared(monkeypatch):
    """The masks that candidates are taken from grow as the number of tiles, not as its square."""
    find, searched, sums = np.flatnonzero, [], []
    monkeypatch.setattr(np, "flatnonzero", lambda mask: (searched.append(len(mask)), find(mask))[1])
    for tiles in (10, 40):
        size, boxes = (64 * tiles, 64), [(x, y, x + 5, y + 5) for x in range(8, 64 * tiles, 8) for y in (8, 20, 40)]
        frames = tile_frames(*size, 64, 0.2)
        shown = []
        for left, top, right, bottom in frames[1:]:
            cut = [(max(a, left), max(b, top), min(c, right), min(d, bottom)) for a, b, c, d in boxes]
            shown.append(found(*((0, 0.9, *box) for box in cut if box[0] < box[2] and box[1] < box[3])))
        searched.clear()
        result = merge_tiles([found(), *shown], frames, size)["boxes"].int().tolist()
        assert sorted(map(tuple, result)) == boxes
        sums.append(sum(searched))
    assert sums[1] < 6 * sums[0], sums


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


def photograph(folder, name):
    """A picture with a bright block, as upright pixels and as a file that a camera turned by a quarter has."""
    upright = picture((20, 70, 60, 110), size=(120, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned clockwise it is upright
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / name, exif=exif, quality=100)
    return upright, folder / name


@pytest.mark.parametrize("name", ["turned.jpg", "turned.png"])
@pytest.mark.parametrize("wrap", ["plain", "tiles", "views"])
def test_boxes_are_in_the_turned_picture_whoever_turns_it(tmp_path, tiny_model, name, wrap):
    from rfdetr_hf import RFDETRImageProcessor, load_detector

    RFDETRImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    tiny_model().save_pretrained(tmp_path)
    detect = load_detector(str(tmp_path))
    wrapped = {"plain": detect, "tiles": TiledDetector(detect, 96), "views": AugmentedDetector(detect)}[wrap]
    upright, file = photograph(tmp_path, name)
    opened = Image.open(file)
    assert opened.size == (200, 120)
    expected, found, converted = wrapped([upright, Image.open(file), Image.open(file).convert("RGB")])
    for each in (found, converted):
        assert each["boxes"][:, 2].max() <= 120 and each["boxes"][:, 3].max() > 120
        torch.testing.assert_close(each["boxes"], expected["boxes"], atol=1.5, rtol=0)


def test_tiles_and_views_turn_pictures_for_any_detector(tmp_path):
    upright, file = photograph(tmp_path, "turned.png")
    (expected,) = blobs([upright])
    for detect in (TiledDetector(blobs, 96, overlap=0.5), AugmentedDetector(blobs)):
        (found,) = detect([Image.open(file)])
        assert found["boxes"][0].tolist() == pytest.approx(expected["boxes"][0].tolist())


def test_a_picture_of_16_bits_has_one_range_for_all_of_its_tiles(tiny_model, tmp_path):
    from rfdetr_hf import RFDETRImageProcessor

    seen = []
    model = tiny_model()
    model.register_forward_pre_hook(lambda m, a, kwargs: seen.append(kwargs["pixel_values"].clone()), with_kwargs=True)
    processor = RFDETRImageProcessor(size={"height": 64, "width": 64}, do_normalize=False, value_range=[0, 4095])
    detect = TiledDetector(ImageDetector(model, processor), 64, overlap=0.0)
    assert detect.value_range == AugmentedDetector(detect).value_range == [0, 4095]
    dark = np.full((64, 128), 400, np.uint16)
    dark[:, 64:] = 60000
    Image.fromarray(dark).save(tmp_path / "deep.png")
    detect([Image.open(tmp_path / "deep.png")])
    values = torch.cat(seen).amax(dim=(1, 2, 3)).mul(255).round().tolist()
    assert sorted(values) == [25, 255, 255], "the dark tile stays dark beside the bright one and the complete picture"
    assert round(processor(str(tmp_path / "deep.png"))["pixel_values"].min().item() * 255) == 25, "files as well"


def test_tiles_keep_all_objects_of_a_picture():
    """More than the queries of a model, and with a detector that sees them in the complete picture and in tiles."""
    boxes = [(x, y, x + 12, y + 12) for x in range(4, 1980, 40) for y in range(4, 1480, 40)]
    assert merged([(box, 0.5, 0.9) for box in boxes], size=(2000, 1500)) == sorted(map(list, boxes))


def test_the_queries_of_a_model_are_a_limit_of_each_tile_alone(tiny_model):
    detect = ImageDetector(tiny_model(), RFDETRImageProcessor(size={"height": 64, "width": 64}))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    (every,) = with_views(detect, ViewArguments(tile=64))([image])
    assert len(every["scores"]) > 2 * detect.model.config.num_queries
    (best,) = TiledDetector(detect, 64, top_k=5)([image])
    assert torch.equal(best["boxes"], every["boxes"][:5])
