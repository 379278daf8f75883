"""Columns that people publish, brought into the one schema."""

import json

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from helpers.columns import NAMES, plain, row

from rfdetr_hf import category_ids, class_names, load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.schema import decode_image

pytestmark = pytest.mark.usefixtures("own_cache")


def test_cppe5_columns_in_memory(cppe):
    splits = load_detection_dataset(DatasetDict(train=cppe(), test=cppe()))
    assert list(splits) == ["train", "test"]
    rows = splits["train"]
    assert class_names(rows) == NAMES and category_ids(rows) == [0, 1, 2]
    assert rows["image_id"] == [10, 11, 12] and rows["file_name"] == ["cppe0.png", "cppe1.png", "cppe2.png"]
    assert rows[0]["objects"] == {
        "id": [1, 2],
        "bbox": [[4, 5, 20, 10], [0, 0, 9, 11]],
        "category": [2, 0],
        "area": [200, 99],
        "iscrowd": [False, False],
    }
    assert rows[1]["objects"]["id"] == []
    assert decode_image(rows[2]).size == (64, 48)


OBJECT_FORMS = {
    "list of objects": [[{"bbox": [1, 2, 3, 4], "label": "dog"}, {"bbox": [5, 5, 5, 5], "label": "cat"}], []],
    "labels side by side": [
        {"bbox": [[1, 2, 3, 4], [5, 5, 5, 5]], "labels": ["dog", "cat"]},
        {"bbox": [], "labels": []},
    ],
    "detection-datasets": [
        {"bbox_id": [8, 9], "bbox": [[1, 2, 3, 4], [5, 5, 5, 5]], "category": ["dog", "cat"], "iscrowd": [0, 1]},
        None,
    ],
    "JSON text": ['{"bbox": [[1, 2, 3, 4], [5, 5, 5, 5]], "category": ["dog", "cat"]}', ""],
}


@pytest.mark.parametrize("form", OBJECT_FORMS)
def test_forms_of_objects(cppe, form, caplog):
    train = load_detection_dataset(plain(cppe().select([0, 1]).flatten_indices(), OBJECT_FORMS[form]))["train"]
    assert class_names(train) == ["cat", "dog"]
    assert [len(objects["id"]) for objects in train["objects"]] == [2, 0]
    objects = train[0]["objects"]
    assert objects["bbox"] == [[1, 2, 3, 4], [5, 5, 5, 5]] and objects["category"] == [1, 0]
    assert objects["area"] == [12, 25]
    assert ("in 1 of 2 rows" in caplog.text and "is null" in caplog.text) == (
        None in OBJECT_FORMS[form] or "" in OBJECT_FORMS[form]
    )
    if form == "detection-datasets":
        assert objects["id"] == [8, 9] and objects["iscrowd"] == [False, True]


def test_selected_rows_with_a_transform_are_read_right(cppe):
    source = cppe().select([2, 0]).with_transform(lambda rows: {"x": [0] * len(rows["image"])})
    train = load_detection_dataset(source)["train"]
    assert train["image_id"] == [12, 10] and [o["id"] for o in train["objects"]] == [[7], [1, 2]]


def test_plain_integers_take_given_names(cppe):
    objects = [{"bbox": [[1, 2, 3, 4]], "category": [2]}, {"bbox": [[1, 2, 3, 4]], "category": [0]}]
    source = plain(cppe().select([0, 1]).flatten_indices(), objects)
    train = load_detection_dataset(source, class_names=NAMES)["train"]
    assert class_names(train) == NAMES and [o["category"] for o in train["objects"]] == [[2], [0]]


def test_labels_go_by_name_between_splits(cppe):
    other = cppe(category=ClassLabel(names=["goggles", "mask", "glove"]))
    splits = load_detection_dataset(DatasetDict(train=cppe(), validation=other))
    assert splits["validation"][0]["objects"]["category"] == [1, 2]
    unknown = cppe(category=ClassLabel(names=["visor", "mask", "glove"]))
    named = r"split validation.*\n.*annotation id 2 .*image id 10.*'visor'(.|\n)*class_names"
    with pytest.raises(DetectionDataError, match=named):
        load_detection_dataset(DatasetDict(train=cppe(), validation=unknown))


BROKEN = {
    "NaN": (row(bbox=[[float("nan"), 1, 2, 3]]), "annotation id 1 .*not finite"),
    "label beyond": (row(category=[-1]), "annotation id 1 .*field category is -1"),
    "unequal lists": (row(area=[1, 2]), "row 0 has 1 boxes but 2 values in objects.area"),
    "negative area": (row(area=[-1]), "field area is -1"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_rows_are_errors(cppe, fault):
    objects, message = BROKEN[fault]
    with pytest.raises(DetectionDataError, match=message) as error:
        load_detection_dataset(cppe([objects, row()]))
    assert "split train" in str(error.value)


def test_boxes_of_another_length_and_other_columns(cppe):
    source = cppe().select([0]).flatten_indices()
    with pytest.raises(DetectionDataError, match="box 1 of the split .* has 3 numbers, not four"):
        load_detection_dataset(plain(source, [{"bbox": [[1, 2, 3, 4], [1, 2, 3]], "category": [0, 0]}]))
    with pytest.raises(DetectionDataError, match="no field objects.category among"):
        load_detection_dataset(plain(source, [{"bbox": [[1, 2, 3, 4]], "kind": [0]}]))
    with pytest.raises(DetectionDataError, match="no column 'objects' among"):
        load_detection_dataset(source.remove_columns("objects"))
    with pytest.raises(DetectionDataError, match="no column 'image'"):
        load_detection_dataset(source.remove_columns("image"))


def test_corners_are_recognised_and_read_when_asked(cppe):
    corners = np.tile([[30, 20, 60, 44]], (12, 1)).tolist()
    source = cppe([{"id": list(range(12)), "area": [720] * 12, "bbox": corners, "category": [0] * 12}])
    with pytest.raises(DetectionDataError, match="pass bbox_format='xyxy'"):
        load_detection_dataset(source)
    train = load_detection_dataset(source, bbox_format="xyxy")["train"]
    assert train[0]["objects"]["bbox"][0] == [30, 20, 30, 24]
    relative = cppe([{"id": list(range(12)), "area": [1] * 12, "bbox": [[0.5] * 4] * 12, "category": [0] * 12}])
    with pytest.raises(DetectionDataError, match="between 0 and 1"):
        load_detection_dataset(relative)


LISTS = {
    "bbox": [[[4, 5, 20, 10], [0, 0, 9, 11]], [], [[60, 40, 4, 4]]],
    "category": [["goggles", "mask"], [], ["glove"]],
    "id": ["first", "second", "third"],  # of the images, as many tables have it
}


def top_level(cppe, **columns):
    """The images of CPPE-5 with columns in the place of its objects."""
    source = cppe().select_columns(["image"])
    return datasets.concatenate_datasets([source, Dataset.from_dict({**LISTS, **columns})], axis=1)


def test_columns_of_lists_in_the_place_of_objects(cppe):
    expected = [([2, 1], LISTS["bbox"][0]), ([], []), ([0], LISTS["bbox"][2])]
    named = Features({"bboxes": List(List(Value("float32"))), "labels": List(ClassLabel(names=NAMES))})
    labels = Dataset.from_dict({"bboxes": LISTS["bbox"], "labels": [[2, 0], [], [1]]}, named)
    other = datasets.concatenate_datasets([cppe().select_columns(["image"]), labels], axis=1)
    for source, table, categories in (
        (top_level(cppe), sorted(NAMES), [[1, 2], [], [0]]),
        (other, NAMES, [[2, 0], [], [1]]),
        (top_level(cppe, **{k: list(map(json.dumps, LISTS[k])) for k in ("bbox", "category")}), sorted(NAMES), None),
    ):
        train = load_detection_dataset(source)["train"]
        assert class_names(train) == table and train["image_id"] == [0, 1, 2]
        assert [row["bbox"] for row in train["objects"]] == [boxes for _, boxes in expected]
        assert [row["category"] for row in train["objects"]] == (categories or [[1, 2], [], [0]])


def test_objects_of_two_kinds_in_json_are_named_by_row(cppe):
    texts = [{"bbox": [[1, 2, 3, 4]], "category": [0 if i != 2 else "cat"]} for i in range(4)]
    with pytest.raises(DetectionDataError, match=r"row 2: column 'objects': .*'cat'.*numbers as numbers"):
        load_detection_dataset(plain(cppe([{}] * 4), list(map(json.dumps, texts))))


@pytest.mark.parametrize(("values", "said"), [([["cat", "cat"], [], ["cat"]], True), (LISTS["category"], False)])
def test_two_columns_of_categories(cppe, values, said, caplog):
    train = load_detection_dataset(top_level(cppe, labels=values))["train"]
    assert class_names(train) == sorted(NAMES)
    assert ("column category is read, and labels, which has other values, is not" in caplog.text) == said


def test_columns_of_lists_in_an_image_folder(tmp_path, write_image):
    for i in range(2):
        write_image(tmp_path / "train" / f"{i}.png")
    rows = [{"file_name": f"{i}.png", "bbox": [[1, 2, 30, 20]], "category": [i]} for i in range(2)]
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train = load_detection_dataset(tmp_path)["train"]
    assert [row["category"] for row in train["objects"]] == [[0], [1]]


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"bbox": [[1, 2, 3, 4]] * 3}, "column bbox holds int64, not lists of four numbers; give each image one row"),
        ({"category": ["cat", "dog", "cat"]}, "no column category with one list per image among"),
        ({"category": [["mask"], [], ["glove"]]}, "row 0 has 2 boxes but 1 values in category"),
        ({"bbox": [[[4, 5, 20, 10], [0, 0, 9]], [], [[60, 40, 4, 4]]]}, "has 3 numbers, not four"),
        ({"bbox": [[[0, 0, 0.1, 0.2]] * 2, [], [[0.5, 0.5, 0.2, 0.2]]]}, "pass bbox_format='xywhn'"),
        ({"iscrowd": [["x", "y"], [], ["z"]]}, "column iscrowd holds 'x', neither yes nor no"),
        (
            {"area": [["1", "2"], [], ["z"]]},
            "row 2: column area holds string, not numbers: 'z' is not a number",
        ),
        (
            {"category": [[1.0, 2.0], [], [1.5]]},
            "row 2: column category holds double, not numbers: 1.5 is not an integer",
        ),
        (
            {"bbox": [[["4", "5", "20", "b"]] * 2, [], [["1"] * 4]]},
            "row 0: column bbox holds string.*'b' is not a number",
        ),
        ({"bbox": [["4 5 20 10"] * 2, [], ["4 5 20 10"]]}, "not lists of four numbers; "),
        ({"area": [[True, True], [], [True]]}, "column area holds true and false, not numbers"),
        ({"category": [[True, False], [], [True]]}, "column category holds true and false, not numbers"),
        ({"category": [["mask", None], [], ["glove"]]}, "field category is -1"),
    ],
)
def test_columns_of_lists_have_the_checks_of_objects(cppe, columns, fault):
    with pytest.raises(DetectionDataError, match=fault.replace("(", r"\(")):
        load_detection_dataset(top_level(cppe, **columns))
