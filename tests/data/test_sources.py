import csv
import json
import re

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage

from rfdetr_hf import convert_dataset
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.schema import category_ids, class_names, decode_image
from rfdetr_hf.data.sources import load_detection_dataset
from rfdetr_hf.data.splits import canonical_split, choose_splits

NAMES = ["mask", "glove", "goggles"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def cppe(write_image, tmp_path):
    """A data set with the columns of CPPE-5, and options to spoil it."""

    def build(rows=None, category=None, **drop):
        if rows is None:
            rows = [
                {"id": [1, 2], "area": [200, 99], "bbox": [[4, 5, 20, 10], [0, 0, 9, 11]], "category": [2, 0]},
                {"id": [], "area": [], "bbox": [], "category": []},
                {"id": [7], "area": [16], "bbox": [[60, 40, 4, 4]], "category": [1]},
            ]
        features = Features(
            {
                "image_id": Value("int64"),
                "image": Image(),
                "width": Value("int32"),
                "height": Value("int32"),
                "objects": {
                    "id": List(Value("int64")),
                    "area": List(Value("int64")),
                    "bbox": List(List(Value("float32"), length=4)),
                    "category": List(category or ClassLabel(names=NAMES)),
                },
            }
        )
        sizes = {"width": 64, "height": 48}
        name = "cppe" if category is None else "other"  # one picture in two splits has the same labels in both
        paths = [str(write_image(tmp_path / f"{name}{i}.png", (64, 48))) for i in range(len(rows))]
        records = [{"image_id": 10 + i, "image": paths[i], **sizes, "objects": o} for i, o in enumerate(rows)]
        return Dataset.from_list(records, features)

    return build


def plain(dataset, objects):
    """Replace the objects column by values whose types `datasets` guesses."""
    rest = dataset.select_columns(["image"])
    return datasets.concatenate_datasets([rest, Dataset.from_dict({"objects": objects})], axis=1)


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


def test_what_was_loaded_loads_again_from_disk_and_parquet(cppe, tmp_path, coco_content, write_coco):
    source = load_detection_dataset(write_coco(tmp_path / "coco" / "train.json", coco_content()))
    source.save_to_disk(tmp_path / "saved")
    source["train"].save_to_disk(tmp_path / "saved_split")
    (tmp_path / "parquet").mkdir()
    source["train"].to_parquet(tmp_path / "parquet" / "train-00000-of-00001.parquet")
    for folder in ("saved", "saved_split", "parquet"):
        rows = load_detection_dataset(tmp_path / folder)["train"]
        assert category_ids(rows) == [3, 7] and rows["objects"] == source["train"]["objects"], folder
        assert decode_image(rows[0]).size == (64, 48)


def metadata_folder(folder, write_image, rows, style):
    for name in rows:
        write_image(folder / "train" / name, (64, 48))
    file = folder / "train" / f"metadata.{style}"
    if style == "jsonl":
        lines = [json.dumps({"file_name": name, "objects": objects}) for name, objects in rows.items()]
        file.write_text("\n".join(lines))
        return
    with open(file, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file_name", "objects"])
        writer.writerows([name, json.dumps(objects)] for name, objects in rows.items())


@pytest.mark.parametrize("style", ["jsonl", "csv"])
@pytest.mark.parametrize("builder", [True, False])
def test_imagefolder_with_metadata(tmp_path, write_image, style, builder):
    rows = {
        "a.png": {"bbox": [[4, 5, 20, 10], [1, 1, 9.5, 3]], "categories": [5, 2]},
        "b.png": {"bbox": [], "categories": []},
    }
    metadata_folder(tmp_path, write_image, rows, style)
    splits = (
        load_detection_dataset("imagefolder", data_dir=str(tmp_path)) if builder else load_detection_dataset(tmp_path)
    )
    train = splits["train"]
    assert class_names(train) == ["2", "5"] and category_ids(train) == [2, 5]
    assert train["image_id"] == [0, 1] and train["width"] == [64, 64] and train["height"] == [48, 48]
    assert train["file_name"] == ["a.png", "b.png"]
    assert train[0]["objects"] == {
        "id": [1, 2],
        "bbox": [[4, 5, 20, 10], [1, 1, 9.5, 3]],
        "category": [1, 0],
        "area": [200, 28.5],
        "iscrowd": [False, False],
    }
    assert decode_image(train[0]).size == (64, 48)


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
    with pytest.raises(DetectionDataError, match=r"split validation.*\n.*annotation id 2 .*image id 10.*'visor'"):
        load_detection_dataset(DatasetDict(train=cppe(), validation=unknown))


def row(**changes):
    return {"id": [1], "area": [4], "bbox": [[1, 2, 3, 4]], "category": [0], **changes}


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


def test_a_file_in_two_rows_is_an_error_or_one_row_where_they_agree(cppe, caplog):
    source = cppe()
    twice = datasets.concatenate_datasets([source, source.select([0])]).remove_columns("image_id")
    train = load_detection_dataset(twice)["train"]
    assert train["image_id"] == [0, 1, 2] and "dropped 1 entries of files that are listed twice" in caplog.text
    other = plain(datasets.concatenate_datasets([source.select([0])] * 2), [row(), row(bbox=[[9, 9, 3, 4]])])
    with pytest.raises(DetectionDataError, match="cppe0.png is listed as image id 0 and as image id 1, with different"):
        load_detection_dataset(other)


@pytest.mark.parametrize("names", ["mask", [], ["mask", "mask"], ["mask", None], ["mask", 3]])
def test_class_names_are_a_list_of_distinct_texts(cppe, names):
    with pytest.raises(ValueError, match="class_names"):
        load_detection_dataset(cppe(), class_names=names)


def test_a_list_is_one_of_places(cppe):
    with pytest.raises(TypeError, match=r"not Dataset; mix data sets with sources="):
        load_detection_dataset([cppe(), cppe()])
    with pytest.raises(TypeError, match="not empty"):
        load_detection_dataset([])


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


def test_image_ids_used_twice_are_an_error_and_text_ids_are_numbered(cppe, caplog):
    with pytest.raises(DetectionDataError, match="image id 10: used by 2 images"):
        load_detection_dataset(datasets.concatenate_datasets([cppe(), cppe().select([0])]))
    source = cppe().cast_column("image_id", Value("string"))
    assert load_detection_dataset(source)["train"]["image_id"] == [0, 1, 2]
    assert "numbered by row" in caplog.text


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


def test_missing_sizes_of_turned_photographs_are_as_shown(tmp_path):
    exif = PILImage.Exif()
    exif[0x0112] = 6
    (tmp_path / "train").mkdir()
    PILImage.new("RGB", (64, 48)).save(tmp_path / "train" / "a.jpg", exif=exif)
    line = {"file_name": "a.jpg", "objects": {"bbox": [[1, 50, 9, 9]], "categories": [0]}}
    (tmp_path / "train" / "metadata.jsonl").write_text(json.dumps(line))
    train = load_detection_dataset(tmp_path)["train"]
    assert (train[0]["width"], train[0]["height"]) == (48, 64) and decode_image(train[0]).size == (48, 64)


@pytest.mark.parametrize("style", ["jsonl", "csv"])
@pytest.mark.parametrize("builder", [True, False])
def test_pictures_of_an_imagefolder_without_a_row_are_counted(tmp_path, write_image, caplog, style, builder):
    rows = {"a.png": {"bbox": [[4, 5, 20, 10]], "categories": [5]}, "b.png": {"bbox": [], "categories": []}}
    metadata_folder(tmp_path, write_image, rows, style)
    options = {"data_dir": str(tmp_path)} if builder else {}
    source = "imagefolder" if builder else tmp_path
    assert len(load_detection_dataset(source, **options)["train"]) == 2 and "left out" not in caplog.text
    for name in ("c.png", "deeper/d.png"):
        write_image(tmp_path / "train" / name)
    assert load_detection_dataset(source, **options)["train"]["file_name"] == ["a.png", "b.png"]
    assert f"2 pictures have no row in train/metadata.{style} and are left out, such as train/c.png" in caplog.text
    assert "is not read" not in caplog.text
    (tmp_path / f"metadata.{style}").write_text((tmp_path / f"train/metadata.{style}").read_text())
    load_detection_dataset(source, **options)
    assert f"metadata.{style} is not read for the pictures of " in caplog.text


@pytest.mark.parametrize("style", ["jsonl", "csv"])
@pytest.mark.parametrize("builder", [True, False])
def test_rows_of_an_imagefolder_without_a_picture_name_both_files(tmp_path, write_image, style, builder):
    rows = {name: {"bbox": [[4, 5, 20, 10]], "categories": [5]} for name in ("a.png", "b.png", "deeper/c.png")}
    metadata_folder(tmp_path, write_image, rows, style)
    for name in ("b.png", "deeper/c.png"):
        (tmp_path / "train" / name).unlink()
    options = {"data_dir": str(tmp_path)} if builder else {}
    with pytest.raises(DetectionDataError) as refusal:
        load_detection_dataset("imagefolder" if builder else tmp_path, **options)
    for name in ("b.png", "deeper/c.png"):
        table = tmp_path / "train" / f"metadata.{style}"
        assert f"{table}: field file_name names {name}, which is missing" in str(refusal.value)
    assert "To repair: restore the pictures" in str(refusal.value)


def test_share_of_the_training_images_is_held_out(cppe):
    objects = [{"id": [i], "area": [4], "bbox": [[1, 2, 3, 4]], "category": [0]} for i in range(20)]
    splits = load_detection_dataset(cppe(objects), validation_split=0.25)
    again = load_detection_dataset(cppe(objects), validation_split=0.25)
    other = load_detection_dataset(cppe(objects), validation_split=0.25, split_seed=1)
    train, validation = splits["train"]["image_id"], splits["validation"]["image_id"]
    assert len(train) == 15 and len(validation) == 5 and sorted([*train, *validation]) == list(range(10, 30))
    assert again["validation"]["image_id"] == validation != other["validation"]["image_id"]
    assert str(splits["validation"].split) == "validation" and validation == sorted(validation)
    assert class_names(splits["validation"]) == NAMES
    for share in (0.0, 1.5, 0.001):
        with pytest.raises(ValueError, match="validation_split"):
            load_detection_dataset(cppe(objects), validation_split=share)


def test_splits_are_named_and_renamed(cppe):
    source = DatasetDict(fit=cppe(), check=cppe(), test=cppe())
    with pytest.raises(DetectionDataError, match=r"no training split among \['fit', 'check', 'test'\]"):
        load_detection_dataset(source)
    splits = load_detection_dataset(source, train_split="fit", validation_split="check")
    assert list(splits) == ["train", "validation", "test"]
    assert [str(split.split) for split in splits.values()] == ["train", "validation", "test"]
    with pytest.raises(DetectionDataError, match=r"test_split='dev' does not exist; the splits are \['fit'"):
        load_detection_dataset(source, train_split="fit", test_split="dev")
    only = load_detection_dataset(DatasetDict(test=cppe()), class_names=["glove", "mask", "goggles"])
    assert list(only) == ["test"] and only["test"][0]["objects"]["category"] == [2, 1]


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        (["train2017", "val2017"], {"train": "train2017", "validation": "val2017"}),
        (["train", "train_small", "dev"], {"train": "train", "validation": "dev"}),
        (["everything"], {"train": "everything"}),
    ],
)
def test_choice_of_splits(found, chosen):
    assert choose_splits(found, "x", None, None, None) == chosen


def test_ambiguous_splits_are_errors_and_odd_names_are_nothing():
    with pytest.raises(DetectionDataError, match="train_split=…"):
        choose_splits(["train2014", "train2017"], "x", None, None, None)
    assert canonical_split("test-dev2017") is None and canonical_split("constraint") is None


def test_options_that_do_nothing_are_refused(cppe, tmp_path, coco_content, write_coco):
    file = write_coco(tmp_path / "train.json", coco_content())
    with pytest.raises(TypeError, match="revision"):
        load_detection_dataset(file, revision="main")
    with pytest.raises(TypeError, match="image_dir"):
        load_detection_dataset(cppe(), image_dir="x")
    with pytest.raises(TypeError, match="name"):
        load_detection_dataset(cppe(), name="x")
    with pytest.raises(TypeError, match="train_split"):
        load_detection_dataset("imagefolder", split="train")
    with pytest.raises(ValueError, match="bbox_format='yolo'"):
        load_detection_dataset(cppe(), bbox_format="yolo")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DetectionDataError, match="no such folder; the part .* is .*; it may be a Hub id"):
        load_detection_dataset(tmp_path / "nothing")


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


def turned(folder, others, orientation, size):
    """A COCO folder: six photographs of EXIF orientation 6 whose sizes are as `others`, and one that could be both."""
    pixels, images = np.zeros((48, 64, 3), np.uint8), []
    pixels[5:15, 5:25] = 255
    for i in range(7 if others else 1):
        tag, stored, frame = (6, pixels, others) if i else (orientation, pixels[: size[1], : size[0]], size)
        exif = PILImage.Exif()
        exif[0x0112] = tag
        folder.mkdir(parents=True, exist_ok=True)
        PILImage.fromarray(stored).save(folder / f"{i}.jpg", exif=exif, quality=95)
        images.append({"id": i, "file_name": f"{i}.jpg", "width": frame[0], "height": frame[1]})
    annotations = [{"id": i, "image_id": i, "bbox": [5, 5, 20, 10], "category_id": 1} for i in range(len(images))]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "_annotations.coco.json").write_text(json.dumps(content))
    return folder.parent


@pytest.mark.parametrize(("orientation", "size"), [(3, (64, 48)), (6, (48, 48))])
@pytest.mark.parametrize(("others", "frame"), [((64, 48), "stored"), ((48, 64), "shown"), (None, "shown")])
def test_photographs_whose_size_does_not_tell_are_read_as_the_others(
    tmp_path, caplog, orientation, size, others, frame
):
    splits = load_detection_dataset(turned(tmp_path / "set/train", others, orientation, size))
    told = f"1 pictures with an EXIF tag have one size .* their boxes are read as {frame}"
    assert bool(re.search(told, caplog.text)) == (others != (48, 64))
    mixed = load_detection_dataset(sources=[tmp_path / "set", turned(tmp_path / "other/train", (48, 64), 3, (64, 48))])
    convert_dataset(splits, tmp_path / "shards", "parquet", 1)
    for read in (splits, mixed, load_detection_dataset(tmp_path / "shards")):
        row = read["train"][0]
        inside = np.asarray(decode_image(row))[6:14, 6:24]
        assert (inside.min() > 128) == (frame == "stored") and row["objects"]["bbox"] == [[5, 5, 20, 10]]
        if "as_stored" in read["train"].column_names:
            assert list(read["train"]["as_stored"]) == [True] + [False] * (len(read["train"]) - 1)


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
