"""Values that mean no, ids and names are read as they are written, or are errors."""

import json

import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from rfdetr_hf import class_names, load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError


@pytest.fixture
def load(tmp_path, coco_content, write_coco):
    """Load a COCO file that `change(content)` has changed."""

    def load(change, **options):
        content = coco_content()
        change(content)
        return load_detection_dataset(write_coco(tmp_path / "train.json", content), **options)["train"]

    return load


@pytest.mark.parametrize(("value", "crowd"), [
    ("0", False), ("false", False), ("False", False), ("no", False), (-1, False), (None, False), ("", False),
    (0.0, False),
    ("1", True), ("true", True), (1.0, True), (True, True),
])  # fmt: skip
def test_crowds_in_any_spelling(load, value, crowd):
    train = load(lambda content: content["annotations"][1].update(iscrowd=value))
    assert train[0]["objects"]["iscrowd"] == [False, crowd]


@pytest.mark.parametrize("value", [2, "maybe", [1], 0.5, -7])
def test_crowds_that_are_neither_yes_nor_no(load, value):
    with pytest.raises(DetectionDataError, match="annotation id 10: field iscrowd"):
        load(lambda content: content["annotations"][0].update(iscrowd=value))


def columns(tmp_path, write_image, category, kind=None, **fields):
    path = str(write_image(tmp_path / "a.png"))
    objects = {"bbox": [[4, 4, 20, 10], [8, 8, 9, 11]], "category": category, **fields}
    dataset = Dataset.from_dict({"image": [path], "objects": [objects]}).cast_column("image", Image())
    if kind is not None:
        features = dataset.features.copy()
        features["objects"] = {"bbox": List(List(Value("float64"), length=4)), "category": List(kind)}
        dataset = dataset.cast(Features(features))
    return dataset


@pytest.mark.parametrize("flags", [["0", "false"], [-1, 0], [None, False], ["no", ""]])
def test_crowds_of_columns(tmp_path, write_image, flags):
    train = load_detection_dataset(columns(tmp_path, write_image, [0, 1], iscrowd=flags))["train"]
    assert train[0]["objects"]["iscrowd"] == [False, False]


@pytest.mark.parametrize("category", [[0, None], [0, -1], ["cat", None], ["cat", ""], ["cat", "  "]])
def test_objects_without_a_category_move_no_label(tmp_path, write_image, category):
    with pytest.raises(DetectionDataError, match="annotation id 2 .*field category is"):
        load_detection_dataset(columns(tmp_path, write_image, category))


def test_a_category_below_zero_moves_no_label(load):
    with pytest.raises(DetectionDataError, match="-1"):
        load(lambda content: content["categories"].insert(0, {"id": -1, "name": "none"}))


def test_one_id_with_two_names(load):
    with pytest.raises(DetectionDataError, match="category id 3: field name: has two names, 'cat' and 'cow'"):
        load(lambda content: content["categories"].append({"id": 3, "name": "cow"}))
    again = load(lambda content: content["categories"].append({"id": 3, "name": "cat"}))
    assert class_names(again) == ["cat", "dog"]


@pytest.mark.parametrize("image_id", [2**53 + 1, 2**63 - 1, -5])
def test_image_ids_are_exact(load, image_id):
    def change(content):
        content["images"][0]["id"] = image_id
        for annotation in content["annotations"][:2]:
            annotation["image_id"] = image_id

    train = load(change)
    assert train["image_id"] == [image_id, 1] and len(train[0]["objects"]["id"]) == 2


@pytest.mark.parametrize("image_id", [2**63, 1e300, 2.0**60, "a", True])
def test_image_ids_that_are_none_are_named(load, image_id):
    def change(content):
        content["images"][0]["id"] = image_id

    with pytest.raises(DetectionDataError, match=r"field id is .*not an integer of 64 bits"):
        load(change)


def test_class_label_of_minus_one(tmp_path, write_image):
    dataset = columns(tmp_path, write_image, [0, -1], ClassLabel(names=["cat", "dog"]))
    with pytest.raises(DetectionDataError, match="field category is -1"):
        load_detection_dataset(dataset)


def test_class_names_forge_no_lines():
    from rfdetr_hf import audit_data, label_table, make_shapes_dataset
    from rfdetr_hf.data.schema import detection_features
    from rfdetr_hf.hub.model_card import as_text

    names = ["a\x1b[31m\nb", "c"]
    dataset = make_shapes_dataset(2, image_size=64).cast(detection_features(names + ["d"]))
    assert "\x1b" not in label_table(dataset) and len(label_table(dataset).splitlines()) == 4
    audit = audit_data({"train": dataset}, cache_dir="")
    for text in (str(audit), str(audit.reports["train"])):
        assert "\x1b" not in text and not any(line.startswith("b") for line in text.splitlines())
    assert "\x1b" not in as_text(names[0]) and "\n" not in as_text(names[0])


NAN, INF = float("nan"), float("inf")
NUMBERS = {
    "area": ("annotations", "area", lambda odd: odd),
    "bbox": ("annotations", "bbox", lambda odd: [4, odd, 20, 10]),
    "iscrowd": ("annotations", "iscrowd", lambda odd: odd),
    "id": ("annotations", "id", lambda odd: odd),
    "image_id": ("annotations", "image_id", lambda odd: odd),
    "category_id": ("annotations", "category_id", lambda odd: odd),
    "segmentation": ("annotations", "segmentation", lambda odd: [[4, 5, odd, 5, 20, 10]]),
    "counts": ("annotations", "segmentation", lambda odd: {"size": [48, 64], "counts": [0, odd]}),
    "keypoints": ("annotations", "keypoints", lambda odd: [10, odd, 2]),
    "visibility": ("annotations", "keypoints", lambda odd: [10, 8, odd]),
    "width": ("images", "width", lambda odd: odd),
    "id of an image": ("images", "id", lambda odd: odd),
    "id of a category": ("categories", "id", lambda odd: odd),
}


@pytest.mark.parametrize("odd", [NAN, INF, -INF])
@pytest.mark.parametrize("field", NUMBERS)
def test_what_is_not_finite_is_an_error_with_file_and_record(load, field, odd):
    part, key, made = NUMBERS[field]
    tasks = {"segmentation": "segmentation", "keypoints": "keypoints"}

    def spoil(content):
        for each in content["annotations"]:
            each |= {"segmentation": [[4, 5, 20, 5, 20, 10]], "keypoints": [10, 8, 2]}
        for each in content["categories"]:
            each["keypoints"] = ["nose"]
        content[part][0][key] = made(odd)

    with pytest.raises(
        DetectionDataError, match=rf"train\.json[\s\S]*{key.split()[0]}.*(is -?(nan|inf)|not finite|nan|inf)"
    ):
        load(spoil, task=tasks.get(key, "detection"))


@pytest.mark.parametrize("odd", [NAN, INF])
@pytest.mark.parametrize("field", ["area", "bbox", "iscrowd", "id", "category", "segmentation", "keypoints"])
@pytest.mark.parametrize("text", [False, True])
def test_what_is_not_finite_in_a_column_is_an_error_with_the_row(tmp_path, write_image, field, odd, text):
    objects = {"area": [9.0], "bbox": [[4.0, 4.0, 20.0, 10.0]], "iscrowd": [0.0], "id": [1.0], "category": [0.0],
               "segmentation": [[[4.0, 5.0, 20.0, 5.0, 20.0, 10.0]]], "keypoints": [[10.0, 8.0, 2.0]]}  # fmt: skip
    spoilt = json.loads(json.dumps(objects))
    inner = spoilt[field]
    while isinstance(inner[0], list):
        inner = inner[0]
    inner[0] = odd
    path = str(write_image(tmp_path / "a.png"))
    rows = [objects, objects, spoilt]
    table = {"image": [path] * 3, "objects": list(map(json.dumps, rows)) if text else rows}
    dataset = Dataset.from_dict(table).cast_column("image", Image())
    task = field if field in ("segmentation", "keypoints") else "detection"
    with pytest.raises(DetectionDataError, match=r"row 2: |image id 2"):
        load_detection_dataset(dataset, task=task)


def test_areas_of_null_are_those_of_the_boxes(tmp_path, write_image):
    for area in ([None, 5.0], [None, None]):
        train = load_detection_dataset(columns(tmp_path, write_image, [0, 1], area=area))["train"]
        assert train[0]["objects"]["area"] == [200.0, area[1] or 99.0]
