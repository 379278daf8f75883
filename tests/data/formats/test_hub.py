"""What `datasets` loads: saved folders, files, image folders and data sets in memory."""

import csv
import json

import datasets
import pytest

from rfdetr_hf import category_ids, class_names, load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.schema import decode_image

pytestmark = pytest.mark.usefixtures("own_cache")


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
    assert f"2 pictures are left out, without a row in train/metadata.{style}, such as train/c.png" in caplog.text
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


@pytest.mark.parametrize("name", ["coco128", "user/coco128"])
def test_a_name_that_is_no_folder_where_the_hub_is_silent(name, monkeypatch):
    """Before, six attempts in half a minute, and an answer about full disks."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    with pytest.raises(DetectionDataError, match=f"^{name}: there is no such folder here, and it cannot be") as error:
        load_detection_dataset(name)
    assert "loaded from the Hub (http://127.0.0.1:9 does not answer: " in str(error.value)
    assert "disk" not in str(error.value) and not slept
    assert datasets.config.HF_HUB_OFFLINE is False
