import json

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from rfdetr_hf import DataArguments, audit_dataset, load_detection_dataset, make_shapes_dataset
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.masks import mask_array, mask_column, parse_mask, rasterise
from rfdetr_hf.data.schema import coco_segmentation, decode_image, has_masks
from rfdetr_hf.data.synthetic import _mask

HEIGHT, WIDTH = 48, 64
SQUARE = [10.0, 8.0, 30.0, 8.0, 30.0, 28.0, 10.0, 28.0]


def disc(height=HEIGHT, width=WIDTH, centre=(30, 20), radius=12):
    y, x = np.mgrid[:height, :width] + 0.5
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2


def run_lengths(pixels):
    """Uncompressed COCO counts, column by column, starting with zeros."""
    counts, value = [], 0
    for pixel in pixels.T.ravel().astype(int):
        if pixel != value or not counts:
            if not counts and pixel:
                counts.append(0)
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(pixels.shape), "counts": counts}


def draw(value, region=(0, 0, WIDTH, HEIGHT), size=(HEIGHT, WIDTH), flip=False):
    return rasterise(mask_column([value], HEIGHT, WIDTH), region, size, flip)[0]


# ------------------------------------------------------------------------------------------------------- forms


def test_forms_become_coco_again():
    assert coco_segmentation([SQUARE], HEIGHT, WIDTH) == [SQUARE]
    assert coco_segmentation(SQUARE, HEIGHT, WIDTH) == [SQUARE], "one polygon without its list"
    assert coco_segmentation({"polygons": [SQUARE], "rle": None}, HEIGHT, WIDTH) == [SQUARE]
    pixels = disc()
    text = coco_segmentation(run_lengths(pixels), HEIGHT, WIDTH)
    assert text["size"] == [HEIGHT, WIDTH] and np.array_equal(mask_utils.decode(text), pixels)
    for same in ({"polygons": None, "rle": text["counts"]}, {**text, "counts": text["counts"].encode()}, text):
        assert coco_segmentation(same, HEIGHT, WIDTH) == text


@pytest.mark.parametrize("value", [None, [], {}, {"polygons": [], "rle": None}, [[1.0, 2.0, 3.0, 4.0]]])
def test_no_mask(value):
    assert parse_mask(value, HEIGHT, WIDTH) is None
    with pytest.raises(ValueError, match="is empty"):
        coco_segmentation(value, HEIGHT, WIDTH)


def test_numbers_of_numpy_are_numbers():
    plain = {"size": [4, 3], "counts": [5, 4, 3]}
    arrays = {name: np.array(values) for name, values in plain.items()}
    assert parse_mask(arrays, 4, 3) == parse_mask(plain, 4, 3)


def test_a_bitmap_is_no_list_of_polygons():
    with pytest.raises(ValueError, match="is a bitmap: encode it"):
        parse_mask(np.eye(8, 10, dtype=int).tolist(), 8, 10)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1, 2, 3, 4, 5, 6, 7]], "shape"),
        ([[1, 2, 3, 4, 5, float("nan")]], "not finite"),
        ([[1, 2, 3, 4, 5, "x"]], "more than numbers .such as '1'"),
        ("text", "is the text"),
        ({"size": [64, 48], "counts": "abc"}, r"size \[64, 48\], but the image has \(height, width\) \(48, 64\)"),
        ({"size": [48, 64], "counts": [5, 5]}, "of 10 pixels, but the image has 3072"),
    ],
)
def test_what_is_no_mask(value, message):
    with pytest.raises(ValueError, match=message):
        parse_mask(value, HEIGHT, WIDTH)


def test_column_of_all_forms_survives_selection():
    masks = [[np.array(SQUARE), np.array(SQUARE) + 1], None, "counts", [np.array(SQUARE[:6])]]
    column = mask_array(masks)
    assert [row and row["rle"] for row in column.to_pylist()] == [None, None, "counts", None]
    assert column.take([3, 0]).to_pylist() == [
        {"polygons": [SQUARE[:6]], "rle": None},
        {"polygons": [SQUARE, [value + 1 for value in SQUARE]], "rle": None},
    ]
    assert len(mask_array([])) == 0


# ------------------------------------------------------------------------------------------------------ drawing


def test_polygons_cover_the_pixels_whose_centres_they_cover():
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[8:28, 10:30] = True
    assert np.array_equal(draw([SQUARE]), expected)
    assert np.array_equal(draw([SQUARE], flip=True), expected[:, ::-1])
    assert np.array_equal(draw([SQUARE], (20, 4, 60, 24), (20, 40)), expected[4:24, 20:60])
    assert np.array_equal(draw([SQUARE], size=(24, 32)), expected[1::2, 1::2])


def test_parts_of_an_object_are_one_mask():
    parts = [SQUARE, [value + 10 for value in SQUARE]]
    assert draw(parts).sum() == 2 * 400 - 10 * 10
    assert np.array_equal(draw(parts), draw([parts[0]]) | draw([parts[1]]))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("region", "size"), [((0, 0, 64, 48), (24, 32)), ((15, 7, 53, 41), (40, 30)), ((20, 10, 40, 30), (100, 100))]
)
def test_polygons_and_run_lengths_agree(region, size, flip):
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    outline = np.stack([30 + 12 * np.cos(angle), 20 + 12 * np.sin(angle)], axis=1).ravel().tolist()
    left, right = draw([outline], region, size, flip), draw(run_lengths(disc()), region, size, flip)
    assert (left & right).sum() / (left | right).sum() > 0.93
    # Against the formula of the disc itself, at the pixels of the view.
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    x = region[0] + (size[1] - x if flip else x) * (region[2] - region[0]) / size[1]
    y = region[1] + y * (region[3] - region[1]) / size[0]
    exact = (x - 30) ** 2 + (y - 20) ** 2 <= 144
    assert (left & exact).sum() / (left | exact).sum() > 0.96


# ------------------------------------------------------------------------------------------------------- sources


@pytest.fixture
def coco_masks(tmp_path, write_coco, coco_content):
    """Load the COCO example with these segmentations of its three boxes."""

    def load(*segmentations, crowd=(), sizes=True, **options):
        content = coco_content()
        for index, (annotation, value) in enumerate(zip(content["annotations"], segmentations, strict=True)):
            annotation["iscrowd"] = int(index in crowd)
            if value is not None:
                annotation["segmentation"] = value
        if not sizes:
            for image in content["images"]:
                del image["width"], image["height"]
        file = write_coco(tmp_path / "set" / "train.json", content)
        return load_detection_dataset(file, **{"task": "segmentation", **options})["train"]

    return load


@pytest.mark.parametrize("sizes", [True, False])
def test_coco_file(coco_masks, sizes):
    rle = run_lengths(disc())
    train = coco_masks([SQUARE], rle, [SQUARE, [1.0, 1.0]], crowd=[1], sizes=sizes)
    assert has_masks(train)
    values = [value for objects in train["objects"] for value in objects["segmentation"]]
    assert values[0] == values[2] == {"polygons": [SQUARE], "rle": None}
    assert np.array_equal(mask_utils.decode(coco_segmentation(values[1], HEIGHT, WIDTH)), disc())
    assert train[0]["objects"]["iscrowd"] == [False, True]
    report = audit_dataset(train)
    assert (report.polygon_masks, report.rle_masks) == (2, 1) and "2 of polygons, 1 run-length" in str(report)
    assert not has_masks(coco_masks([SQUARE], rle, [SQUARE], task="detection"))


def test_missing_masks_are_errors_or_boxes(coco_masks, caplog):
    with pytest.raises(
        DetectionDataError, match=r"annotation id 11 \(image id 0\): field segmentation is missing"
    ) as e:
        coco_masks([SQUARE], None, [])
    assert "annotation id 12" in str(e.value) and "missing_masks='box'" in str(e.value)
    train = coco_masks([SQUARE], None, [], missing_masks="box")
    assert "took the box as the mask of 2 objects without one" in caplog.text
    x, y, w, h = 1.25, 2.5, 30.1, 20.2
    assert train[0]["objects"]["segmentation"][1]["polygons"] == [[x, y, x + w, y, x + w, y + h, x, y + h]]
    assert train[1]["objects"]["segmentation"][0]["polygons"] == [[0, 0, 64, 0, 64, 48, 0, 48]]


def test_masks_stay_with_their_boxes_when_others_are_dropped_or_moved(tmp_path, write_coco, coco_content):
    content = coco_content()
    outlines = {i: [value + i for value in SQUARE] for i in range(5)}
    boxes = [[9, 8, 20, 20], [11, 9, 0, 0], [12, 10, 20, 20], [13, 11, 20, 20], [90, 90, 9, 9]]
    places = list(zip((1, 0, 1, 0, 0), boxes, strict=True))
    content["annotations"] = [
        {"id": i, "image_id": image, "category_id": 3, "bbox": box, "segmentation": [outlines[i]]}
        for i, (image, box) in enumerate(places)
    ]
    file = write_coco(tmp_path / "set" / "train.json", content)
    objects = load_detection_dataset(file, task="segmentation")["train"]["objects"]
    assert [each["id"] for each in objects] == [[3], [0, 2]]
    for each in objects:
        assert [mask["polygons"][0] for mask in each["segmentation"]] == [outlines[i] for i in each["id"]]


def test_broken_masks_are_named(coco_masks):
    with pytest.raises(
        DetectionDataError, match=r"annotation id 10 .*field segmentation has a polygon of shape \(7,\)"
    ):
        coco_masks([SQUARE[:7]], [SQUARE], [SQUARE])
    with pytest.raises(DetectionDataError, match="annotation id 12 .*is a run-length encoding of size"):
        coco_masks([SQUARE], [SQUARE], {"size": [3, 3], "counts": "x"})


def test_masks_survive_every_way_of_keeping_them(coco_masks, tmp_path):
    source = coco_masks([SQUARE], run_lengths(disc()), [SQUARE], crowd=[1])
    source.save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet").mkdir()
    source.to_parquet(tmp_path / "parquet" / "train-00000-of-00001.parquet")
    for folder in ("saved", "parquet"):
        again = load_detection_dataset(tmp_path / folder, task="segmentation")["train"]
        assert again["objects"] == source["objects"] and again.features == source.features
    assert not has_masks(load_detection_dataset(tmp_path / "saved")["train"])


def test_masks_of_hub_data_sets(coco_masks, write_image, tmp_path):
    write_image(tmp_path / "hub" / "train" / "a.png", (WIDTH, HEIGHT))
    objects = {"bbox": [[10, 8, 20, 20]], "categories": [0], "segmentation": [[SQUARE]]}
    line = json.dumps({"file_name": "a.png", "objects": objects})
    (tmp_path / "hub" / "train" / "metadata.jsonl").write_text(line)
    train = load_detection_dataset(tmp_path / "hub", task="segmentation")["train"]
    assert train[0]["objects"]["segmentation"] == [{"polygons": [SQUARE], "rle": None}]
    del objects["segmentation"]
    (tmp_path / "hub" / "train" / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "objects": objects}))
    with pytest.raises(DetectionDataError, match="task='segmentation' needs the field objects.segmentation"):
        load_detection_dataset(tmp_path / "hub", task="segmentation")


def test_synthetic_masks_are_the_painted_pixels():
    dataset = make_shapes_dataset(30, crowd_share=0.5, task="segmentation")
    plain = make_shapes_dataset(30, crowd_share=0.5)
    forms = set()
    for row, same in zip(dataset, plain, strict=True):
        assert np.array_equal(np.asarray(decode_image(row)), np.asarray(decode_image(same)))
        objects = row["objects"]
        masks = rasterise(mask_column(objects["segmentation"], 96, 96), (0, 0, 96, 96), (96, 96))
        for mask, (x, y, side, _), label, crowd, area in zip(
            masks, objects["bbox"], objects["category"], objects["iscrowd"], objects["area"], strict=True
        ):
            expected = np.zeros((96, 96), bool)
            shape = "square" if crowd else dataset.features["objects"]["category"].feature.names[label]
            expected[int(y) : int(y + side), int(x) : int(x + side)] = _mask(shape, int(side))
            assert np.array_equal(mask, expected) and area == expected.sum()
            forms.add((shape, crowd))
    assert len(forms) == 4


def test_coco_person(data_root):
    """The rasterised area of every polygon is the area that the annotators' tool wrote."""
    file = data_root / "coco_person" / "person_keypoints.json"
    train = load_detection_dataset(data_root / "coco_person", task="segmentation")["train"]
    assert sum(len(o["id"]) for o in train["objects"]) == len(json.loads(file.read_text())["annotations"]) == 14
    for row in train:
        size = (row["height"], row["width"])
        masks = rasterise(mask_column(row["objects"]["segmentation"], *size), (0, 0, *size[::-1]), size)
        assert masks.sum(axis=(1, 2)) == pytest.approx(np.array(row["objects"]["area"]), rel=0.04)


def test_without_any_mask_the_remedy_leads_out(coco_masks):
    """`--task detection` beside a model of masks would be the next error."""
    with pytest.raises(DetectionDataError, match="none of the 3 objects has a mask") as raised:
        coco_masks(None, None, None)
    assert "take boxes alone, with a model for detection such as --model nano" in str(raised.value)
    with pytest.raises(ValueError, match="for segmentation; leave task out, or choose a model for detection"):
        DataArguments(task="detection").load_options("segmentation")
