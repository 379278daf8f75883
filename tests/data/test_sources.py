import json

import datasets
import pytest
from datasets import Value
from helpers.columns import NAMES, plain, row
from PIL import Image as PILImage

from rfdetr_hf import class_names, load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.schema import decode_image

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_file_in_two_rows_is_an_error_or_one_row_where_they_agree(cppe, caplog):
    source = cppe()
    twice = datasets.concatenate_datasets([source, source.select([0])]).remove_columns("image_id")
    train = load_detection_dataset(twice)["train"]
    assert train["image_id"] == [0, 1, 2] and "dropped 1 entry of files that are listed twice" in caplog.text
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


def test_image_ids_used_twice_are_an_error_and_text_ids_are_numbered(cppe, caplog):
    with pytest.raises(DetectionDataError, match="image id 10: used by 2 images"):
        load_detection_dataset(datasets.concatenate_datasets([cppe(), cppe().select([0])]))
    source = cppe().cast_column("image_id", Value("string"))
    assert load_detection_dataset(source)["train"]["image_id"] == [0, 1, 2]
    assert "numbered by row" in caplog.text


def test_missing_sizes_of_turned_photographs_are_as_shown(tmp_path):
    exif = PILImage.Exif()
    exif[0x0112] = 6
    (tmp_path / "train").mkdir()
    PILImage.new("RGB", (64, 48)).save(tmp_path / "train" / "a.jpg", exif=exif)
    line = {"file_name": "a.jpg", "objects": {"bbox": [[1, 50, 9, 9]], "categories": [0]}}
    (tmp_path / "train" / "metadata.jsonl").write_text(json.dumps(line))
    train = load_detection_dataset(tmp_path)["train"]
    assert (train[0]["width"], train[0]["height"]) == (48, 64) and decode_image(train[0]).size == (48, 64)


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
