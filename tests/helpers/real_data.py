"""Real data sets of each task, and whether two readings of one are equal."""

from rfdetr_hf import category_ids, class_names, load_detection_dataset

REAL = {
    "bccd": {"name_or_path": "bccd"},
    "coco128": {"name_or_path": "coco128"},
    "coco128-masks": {"name_or_path": "coco128/data_seg.yaml", "label_dir": "labels_seg", "task": "segmentation"},
    "coco_person": {"name_or_path": "coco_person", "task": "keypoints"},
    "coco_person-masks": {"name_or_path": "coco_person", "task": "segmentation"},
}


def load_real(root, name):
    """The splits of one of `REAL` below the folder of real data."""
    options = dict(REAL[name])
    return load_detection_dataset(root / options.pop("name_or_path"), **options)


def content(row):
    """A row with the bytes of its picture in place of its path."""
    image = row["image"]
    if image["bytes"] is None:
        with open(image["path"], "rb") as file:
            image = {"bytes": file.read()}
    return {**row, "image": image["bytes"]}


def assert_equal_splits(ours, theirs):
    """The same splits, classes and rows; pictures by their bytes."""
    assert list(ours) == list(theirs)
    for name in ours:
        assert class_names(ours[name]) == class_names(theirs[name])
        assert category_ids(ours[name]) == category_ids(theirs[name])
        assert len(ours[name]) == len(theirs[name])
        for mine, other in zip(ours[name], theirs[name], strict=True):
            assert content(mine) == content(other)
