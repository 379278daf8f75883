"""What a source is, which splits it has, and what an unknown one is told."""

import json
import logging
import shutil
import sys
from pathlib import Path

import PIL.Image
import pytest
from datasets import Dataset, DatasetDict, Features, Image, IterableDataset, IterableDatasetDict, List, Value
from helpers.models import tiny_config

from rfdetr_hf import (
    RFDETRForObjectDetection,
    RFDETRTrainer,
    RFDETRTrainingArguments,
    class_names,
    load_detection_dataset,
)
from rfdetr_hf.data.errors import DetectionDataError

ROW = "0 0.5 0.5 0.25 0.25\n"


@pytest.fixture
def yolo(tmp_path, write_image):
    """A YOLO folder with the splits train and val, of two pictures each."""
    root = tmp_path / "set"
    for split in ("train", "val"):
        for name in ("a", "b"):
            write_image(root / f"images/{split}/{name}.jpg")
            (root / f"labels/{split}").mkdir(parents=True, exist_ok=True)
            (root / f"labels/{split}/{name}.txt").write_text(ROW)
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    return root


@pytest.mark.parametrize(("name", "text"), [
    ("notes.json", '{"categories": [{"id": 0, "name": "cat"}], "info": {"version": "1.0"}}'),
    ("tasks.json", '[{"id": 1, "annotations": []}]'),
    ("annotations/x.json", '{"images": [], "annotations": [], "categories": []}'),
    ("package.json", '{"images": {"a": 1}}'),
    ("predictions.json", '[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}]'),
])  # fmt: skip
def test_other_json_files_do_not_hide_yolo_data(yolo, name, text, caplog):
    (yolo / name).parent.mkdir(exist_ok=True)
    (yolo / name).write_text(text)
    with caplog.at_level(logging.INFO):
        splits = load_detection_dataset(yolo)
    assert list(splits) == ["train", "validation"]
    assert "YOLO, 2 splits: train (train) 2 images, validation (val) 2 images" in caplog.text


def test_a_broken_yaml_file_does_not_hide_coco_data_and_is_named(tmp_path, coco_content, write_coco, caplog):
    write_coco(tmp_path / "train.json", coco_content())
    (tmp_path / "data.yaml").write_text("names: [\n")
    assert class_names(load_detection_dataset(tmp_path)) == ["cat", "dog"]
    assert "is read as COCO; also there, and not read:" in caplog.text and "data.yaml: cannot be read" in caplog.text


def test_a_stray_coco_file_does_not_hide_a_broken_yaml_file(yolo, coco_content, write_coco):
    write_coco(yolo / "train.json", coco_content())
    (yolo / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog\n")
    with pytest.raises(DetectionDataError, match=r"data.yaml: cannot be read as YAML(.|\n)*There are YOLO rows below"):
        load_detection_dataset(yolo)
    assert class_names(load_detection_dataset(yolo / "train.json")) == ["cat", "dog"]


def test_the_kind_of_an_export_is_said(tmp_path, coco_content, write_coco, caplog):
    for split in ("train", "valid", "test"):
        write_coco(tmp_path / split / "_annotations.coco.json", coco_content())
    with caplog.at_level(logging.INFO):
        load_detection_dataset(tmp_path)
    assert "Roboflow COCO, 3 splits: train (train) 2 images, validation (valid) 2 images" in caplog.text


def test_a_yaml_file_of_any_name(yolo):
    (yolo / "data.yaml").rename(yolo / "my.yaml")
    assert list(load_detection_dataset(yolo)) == ["train", "validation"]
    shutil.copy(yolo / "my.yaml", yolo / "other.yaml")
    with pytest.raises(DetectionDataError, match="several data.yaml: .*my.yaml"):
        load_detection_dataset(yolo)


@pytest.mark.parametrize("files", [["a.jpg", "x.txt"], ["JPEGImages/a.jpg", "Annotations/a.xml"], []])
def test_an_unknown_folder_says_what_was_looked_for(tmp_path, write_image, files):
    for name in files:
        if name.endswith(".jpg"):
            write_image(tmp_path / "set" / name)
        else:
            (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / name).write_text("a\n")
    (tmp_path / "set").mkdir(exist_ok=True)
    with pytest.raises(DetectionDataError) as error:
        load_detection_dataset(tmp_path / "set")
    text = str(error.value)
    assert "no data set is recognised" in text and "COCO" in text and "no data.yaml" in text and "Parquet" in text


def test_an_unknown_folder_says_how_near_it_came(tmp_path, yolo, coco_content, write_coco):
    (yolo / "data.yaml").unlink()
    (yolo / "notes.json").write_text('{"categories": []}')
    with pytest.raises(
        DetectionDataError, match=r"notes.json: no COCO file(.|\n)*images, labels are there, but no data"
    ):
        load_detection_dataset(yolo)
    write_coco(tmp_path / "outer/inner/train/_annotations.coco.json", coco_content())
    with pytest.raises(DetectionDataError, match="its folder inner is Roboflow COCO: give .*inner"):
        load_detection_dataset(tmp_path / "outer")


def test_a_held_out_share_instead_of_a_split_is_said(yolo, caplog):
    splits = load_detection_dataset(yolo, validation_split=0.5)
    assert {name: len(split) for name, split in splits.items()} == {"train": 1, "validation": 1}
    assert "its split 'val' is not used: validation_split=0.5" in caplog.text


@pytest.mark.parametrize(
    "folders",
    [
        ("train", "val"),
        ("set/images/train", "set/images/valid2017"),
        ("Train\\a", "dev\\a"),
        ("train_images", "val-set"),
    ],
)
def test_a_coco_file_over_the_folders_of_several_splits_is_an_error(
    tmp_path, coco_content, write_coco, caplog, folders
):
    content = coco_content([f"{folder}/{i}.jpg" for folder in folders for i in range(2)])
    for image in content["images"]:
        write_coco(tmp_path / "all.json", {"images": [{"file_name": image["file_name"].replace("\\", "/")}]})
    write_coco(tmp_path / "annotations/all.json", {"images": []}).write_text(json.dumps(content))
    (tmp_path / "all.json").unlink()
    with pytest.raises(
        DetectionDataError, match=r"all.json(.|\n)*mean 2 splits: train 2 pictures, such as .*0.jpg, validation 2"
    ):
        load_detection_dataset(tmp_path)
    splits = load_detection_dataset(tmp_path, data_files={"train": "annotations/all.json"})
    assert {name: len(split) for name, split in splits.items()} == {"train": 4}
    assert "mean 2 splits" in caplog.text and "all are read as one split, 'train'" in caplog.text


@pytest.mark.parametrize(
    ("file", "folders"),
    [
        ("trainval.json", ("train2014", "val2014")),
        ("all.json", ("cats", "test", "dogs", "birds")),
        ("all.json", ("a", "b")),
        ("annotations.json", ("train_station", "test_track")),
        ("result.json", ("set/train_station", "set/test_track", "set/harbour")),
        ("all.json", ("scenes/val_di_sole/test", "scenes/train/a")),
    ],
)
def test_folders_of_pictures_that_are_no_splits_or_meant_so(tmp_path, coco_content, write_coco, file, folders, caplog):
    write_coco(tmp_path / file, coco_content([f"{folder}/{i}.jpg" for folder in folders for i in range(2)]))
    assert len(load_detection_dataset(tmp_path)["train"]) == 2 * len(folders)
    is_told = "trainval" in file or any("_" in folder for folder in folders)
    assert ("mean 2 splits" in caplog.text) == is_told


def test_cvat_pictures_in_the_folders_of_several_splits(tmp_path, write_image):
    names = ("train/a.jpg", "val/b.jpg")
    for name in names:
        write_image(tmp_path / "images" / name)
    box = '<box label="cat" xtl="5" ytl="5" xbr="30" ybr="30"/>'
    images = "".join(f'<image name="{name}" width="64" height="48">{box}</image>' for name in names)
    (tmp_path / "annotations.xml").write_text(f"<annotations>{images}</annotations>")
    with pytest.raises(DetectionDataError, match=r"annotations.xml(.|\n)*mean 2 splits"):
        load_detection_dataset(tmp_path)


def test_a_yolo_split_over_the_folders_of_others_is_a_warning(yolo, caplog):
    (yolo / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    assert len(load_detection_dataset(yolo)["train"]) == 4
    assert "field train: images: the folders of its pictures mean 2 splits: train 2 pictures" in caplog.text


def test_pictures_out_of_the_folder_of_the_yaml_file_are_said(yolo, caplog):
    (yolo / "configs").mkdir()
    (yolo / "configs/data.yaml").write_text("train: ../images/train\nval: ../images/val\nnames: [cat, dog]\n")
    load_detection_dataset(yolo / "configs")
    assert f"'../images/train' leads out of the folder of the yaml file, to {yolo}/images/train" in caplog.text
    caplog.clear()
    (yolo / "data.yaml").write_text("train: ../images/train\nval: ../images/val\nnames: [cat, dog]\n")
    (yolo / "configs/data.yaml").write_text("path: ..\ntrain: images/train\nnames: [cat, dog]\n")
    for folder in (yolo, yolo / "configs"):
        assert len(load_detection_dataset(folder)["train"]) == 2
    assert "leads out" not in caplog.text


def test_a_folder_of_an_export_without_its_file_is_named(tmp_path, coco_content, write_coco, write_image, caplog):
    write_coco(tmp_path / "train" / "_annotations.coco.json", coco_content())
    write_image(tmp_path / "valid" / "c.jpg")
    assert list(load_detection_dataset(tmp_path)) == ["train"]
    assert "valid: has no _annotations.coco.json, so there is no such split" in caplog.text


def test_a_tree_that_is_no_data_set_is_not_searched_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr("rfdetr_hf.data.formats.hub._MAX_BARREN_FOLDERS", 20)
    for i in range(30):
        (tmp_path / f"{i}").mkdir()
        (tmp_path / f"{i}/status").write_text("x")
    (tmp_path / "0/settings.json").write_text("{}")
    with pytest.raises(DetectionDataError, match="29 folders hold neither images nor tables"):
        load_detection_dataset(tmp_path)


@pytest.mark.parametrize("kind", ["none", "kept back"])
def test_an_unlabelled_test_file_stops_no_training(tmp_path, coco_content, write_coco, kind, caplog):
    for split in ("train", "val", "test"):
        content = coco_content()
        if split == "test":
            content.pop("annotations")
            content = content if kind == "kept back" else {"images": content["images"], "categories": []}
        write_coco(tmp_path / f"annotations/{split}.json", content, tmp_path / split)
    assert list(load_detection_dataset(tmp_path)) == ["train", "validation"]
    assert "the test split is left out" in caplog.text
    with pytest.raises(DetectionDataError, match="annotations"):
        load_detection_dataset(tmp_path, test_split="test")


def test_a_file_of_fewer_classes_than_the_model(tmp_path, coco_content, write_coco):
    content = coco_content()
    content["categories"] = [{"id": 3, "name": "cat"}]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 3]
    names = ["bird", "cat", "dog"]
    splits = load_detection_dataset(write_coco(tmp_path / "val.json", content), class_names=names)
    assert class_names(splits) == names and splits["validation"][0]["objects"]["category"] == [1]


def test_names_that_are_nearly_one_are_told_with_the_source(tmp_path, coco_content, write_coco, caplog):
    content = coco_content()
    content["categories"][1]["name"] = "Dog "
    file = write_coco(tmp_path / "train.json", content)
    assert class_names(load_detection_dataset(file)) == ["Dog ", "dog"]
    assert f"{file}: the classes 'Dog ' (1 object), 'dog' (2 objects) differ in case and blanks alone" in caplog.text


@pytest.mark.parametrize(("names", "rare", "warned"), [
    (("dog", "dogs"), 1, True), (("dog", "dogs"), 5, False), (("glass", "dog"), 1, False), (("bus", "Bu"), 1, True),
])  # fmt: skip
def test_a_rare_plural_is_told_with_the_counts(tmp_path, coco_content, write_coco, caplog, names, rare, warned):
    content = coco_content()
    categories, images = content["categories"][:2], content["images"]
    content["categories"] = [{**each, "name": name} for each, name in zip(categories, names, strict=True)]
    content["annotations"] = [
        {**content["annotations"][0], "id": i, "bbox": [i, i, 9, 9], "category_id": categories[i < rare]["id"]}
        for i in range(10)
    ]
    assert images and load_detection_dataset(write_coco(tmp_path / "train.json", content))
    said = f"{names[1]!r} ({rare} object{'' if rare == 1 else 's'}), {names[0]!r} ({10 - rare} objects) differ"
    assert (said in caplog.text and "an s at the end" in caplog.text) == warned, caplog.text


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("crowds", [True, False])
def test_splits_without_objects(tmp_path, coco_content, write_coco, train, crowds, caplog):
    for split in ("train", "val"):
        content = coco_content()
        if train == (split == "train"):
            content["annotations"] = [{**a, "iscrowd": 1} for a in content["annotations"]] if crowds else []
        write_coco(tmp_path / f"annotations/{split}.json", content, tmp_path / split)
    splits = load_detection_dataset(tmp_path)
    fault = "all objects are crowds" if crowds else "there is no object"
    assert f"{'train' if train else 'validation'} split: {fault}" in caplog.text
    model = RFDETRForObjectDetection(tiny_config(tuple(class_names(splits))))
    args = RFDETRTrainingArguments(output_dir=str(tmp_path / "out"), max_steps=1, disable_tqdm=True)
    given = {"train_dataset": splits["train"], "eval_dataset": splits["validation"]}
    if train:
        with pytest.raises(ValueError, match="train_dataset has no object"):
            RFDETRTrainer(model, args, **given).train()
    else:
        RFDETRTrainer(model, args, **given)
        assert "eval_dataset has no object" in caplog.text


class Nothing:
    """An object of no known kind."""


@pytest.mark.parametrize(("source", "error", "message"), [
    ("", DetectionDataError, "the name of the data set is ''"),
    ("  ", DetectionDataError, "name of the data set"),
    (None, TypeError, "not NoneType"),
    ([1], TypeError, "not int"),
    (Nothing(), TypeError, "not Nothing"),
])  # fmt: skip
def test_what_is_no_source(source, error, message):
    with pytest.raises(error, match=message):
        load_detection_dataset(source)


def test_the_rows_of_a_stream_are_those_of_the_table(tmp_path, monkeypatch, write_image):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    paths = [str(write_image(tmp_path / f"{n}.jpg", size=(40 + n, 30))) for n in range(5)]
    objects = [{"bbox": [[1, 2, 3, 4 + n]], "category": [n % 2]} for n in range(5)]
    table = Dataset.from_dict({"image": paths, "objects": objects}).cast_column("image", Image())
    splits = {"train": table.select(range(3)), "validation": table.select([3, 4])}
    expected = load_detection_dataset(DatasetDict(splits))
    streams = IterableDatasetDict({name: split.to_iterable_dataset(2) for name, split in splits.items()})
    read = load_detection_dataset(streams)
    assert set(read) == set(expected)
    for name in read:
        assert read[name].remove_columns("image").to_list() == expected[name].remove_columns("image").to_list()
        undecoded = read[name].cast_column("image", Image(decode=False))
        assert [row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes() for row in undecoded] == [
            Path(path).read_bytes() for path in (paths[:3] if name == "train" else paths[3:])
        ], "pictures keep the bytes of their files"


def test_a_stream_is_read_again_when_it_is_given_again(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys.modules[__name__], "CORRECTED", 3, raising=False)
    first = load_detection_dataset(IterableDataset.from_generator(corrected_rows))
    monkeypatch.setattr(sys.modules[__name__], "CORRECTED", 7)
    second = load_detection_dataset(IterableDataset.from_generator(corrected_rows))
    assert [rows["train"][0]["objects"]["bbox"][0][2] for rows in (first, second)] == [3, 7]


def corrected_rows():
    yield {"image": PIL.Image.new("RGB", (20, 20)), "objects": {"bbox": [[1, 2, CORRECTED, 4]], "category": [0]}}


CORRECTED = 0


def test_a_stream_without_features_is_one_split(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def rows():
        for n in range(3):
            picture = PIL.Image.new("RGB", (20, 20), (n, 0, 0))
            yield {"image": picture, "objects": {"bbox": [[1, 2, 3, 4]], "category": [0]}}

    read = load_detection_dataset(IterableDataset.from_generator(rows))
    assert list(read) == ["train"] and len(read["train"]) == 3
    assert read["train"].cast_column("image", Image())[2]["image"].getpixel((0, 0)) == (2, 0, 0)


@pytest.mark.parametrize(("fault", "message"), [
    (OSError("connection reset by peer"), "train split: .*: row 2: OSError: connection reset by peer"),
    ({"bbox": [["a"] * 4], "category": [0]}, "row 2, column objects: ArrowInvalid: .*'a'"),
    (None, "there is no row"),
])  # fmt: skip
def test_a_stream_that_breaks_names_the_row(tmp_path, monkeypatch, fault, message):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def rows():
        for n in range(4 if fault else 0):
            if n == 2 and isinstance(fault, Exception):
                raise fault
            objects = {"bbox": [[1, 2, 3, 4]], "category": [0]} if n != 2 else fault
            yield {"image": PIL.Image.new("RGB", (20, 20)), "objects": objects}

    boxes = {"bbox": List(List(Value("float32"))), "category": List(Value("int64"))}
    stream = IterableDataset.from_generator(rows, features=Features({"image": Image(), "objects": boxes}))
    with pytest.raises(DetectionDataError, match=message):
        load_detection_dataset(stream)


def test_lvis_names_images_by_their_address(tmp_path, coco_content, write_coco):
    content = coco_content()
    file = write_coco(tmp_path / "annotations/lvis_v1_train.json", content, tmp_path / "train2017")
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
    import json

    file.write_text(json.dumps(content))
    assert len(load_detection_dataset(tmp_path)["train"]) == 2


def test_labels_in_another_folder_are_named_where_rows_do_not_fit(yolo):
    shutil.copytree(yolo / "labels", yolo / "labels_seg")
    with pytest.raises(DetectionDataError, match="--label_dir labels_seg"):
        load_detection_dataset(str(yolo), task="segmentation")
