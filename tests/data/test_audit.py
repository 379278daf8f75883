import logging
import re

import datasets
import pytest

from rfdetr_hf import audit_dataset, load_detection_dataset, make_shapes_dataset
from rfdetr_hf.data.errors import DetectionDataError


@pytest.fixture
def coco_set(tmp_path, write_coco, coco_content):
    """Twelve images of which the third has no objects, in a folder that tests may spoil afterwards."""
    content = coco_content(tuple(f"{i:02}.jpg" for i in range(12)))
    boxes = [(i, 3, [0, 0, 10 * (i % 3) + 5, 40]) for i in range(12) if i != 2] + [(4, 7, [0, 0, 64, 48])]
    content["annotations"] = [
        {"id": n, "image_id": i, "category_id": c, "bbox": box, "iscrowd": int(c == 7)}
        for n, (i, c, box) in enumerate(boxes)
    ]
    content["annotations"][0] |= {"bbox": [0, 0, 60, 40], "area": 2_000}
    return load_detection_dataset(write_coco(tmp_path / "train.json", content))["train"]


@pytest.mark.parametrize("decode", [True, False])
def test_counts(coco_set, decode):
    report = audit_dataset(coco_set, decode=decode)
    assert (report.split, report.num_images, report.num_empty_images) == ("train", 12, 1)
    assert (report.num_boxes, report.num_crowds) == (11, 1)
    assert report.boxes_per_class == {"cat": 11, "dog": 0} and report.images_per_class == {"cat": 11, "dog": 0}
    assert (report.small, report.medium, report.large) == (10, 1, 0)
    assert (report.max_boxes, report.max_boxes_image_id) == (1, 0)
    assert report.decoded is decode


def test_report_prints_a_table(coco_set):
    text = str(audit_dataset(coco_set, split="fit"))
    assert text.startswith(
        "fit: 12 images (decoded), 1 without objects\n11 boxes, at most 1 in an image (id 0), 1 crowd"
    )
    assert text.splitlines()[-2].split() == ["0", "3", "cat", "11", "11"]


def test_all_bad_images_come_in_one_error(coco_set, tmp_path, write_image):
    (tmp_path / "01.jpg").unlink()
    data = (tmp_path / "05.jpg").read_bytes()
    (tmp_path / "05.jpg").write_bytes(data[: len(data) // 2])
    write_image(tmp_path / "07.jpg", (32, 48))
    with pytest.raises(DetectionDataError, match="fit: 3 problems") as error:
        audit_dataset(coco_set, split="fit", num_threads=3)
    for name, fault in (("01", "missing"), ("05", "truncated"), ("07", "32x48 pixels .* say 64x48")):
        assert re.search(rf"{name}\.jpg: .*{fault}", str(error.value))
    with pytest.raises(DetectionDataError, match="fit: 2 problems"):
        audit_dataset(coco_set, split="fit", decode=False)


def test_no_more_than_ten_files_are_listed(coco_set, tmp_path):
    for path in tmp_path.glob("*.jpg"):
        path.unlink()
    with pytest.raises(DetectionDataError, match="12 problems") as error:
        audit_dataset(coco_set)
    assert str(error.value).count("is missing") == 10 and "2 more" in str(error.value)


def test_any_format_of_the_data_set_is_audited_alike(coco_set):
    expected = audit_dataset(coco_set.select([4, 2]))
    assert expected.num_images == 2 and expected.max_boxes_image_id == 4
    for changed in (
        coco_set.with_transform(lambda rows: {"x": [0] * len(rows["image"])}),
        coco_set.cast_column("image", datasets.Image()),
        coco_set.with_format("torch"),
    ):
        assert audit_dataset(changed.select([4, 2])) == expected


def test_other_data_sets_are_refused():
    with pytest.raises(DetectionDataError, match=r"columns \['width', 'height'\] are missing.*load_detection_dataset"):
        audit_dataset(make_shapes_dataset(2, 32).remove_columns(["width", "height"]))


def test_a_data_set_without_boxes(caplog):
    shapes = make_shapes_dataset(60)
    empty = shapes.filter(lambda row: not row["objects"]["id"])
    with caplog.at_level(logging.WARNING):
        report = audit_dataset(empty)
    assert report.num_images == report.num_empty_images > 0 and report.num_boxes == 0
    assert "0 boxes, 0 crowds" in str(report)


def test_bccd_is_sound(data_root):
    report = audit_dataset(load_detection_dataset(data_root / "bccd")["train"])
    assert report.num_images == 205 and report.num_boxes == 2804 and report.num_empty_images == 0
