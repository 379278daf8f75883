"""Pascal VOC folders: real ones against a plain reading of their XML, and small ones with a fault each."""

import logging
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers.voc import CAT, annotation
from PIL import Image
from pycocotools.cocoeval import COCOeval

from rfdetr_hf import audit_dataset, class_names, load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.masks import rasterise
from rfdetr_hf.data.schema import coco_segmentation
from rfdetr_hf.evaluation.ground_truth import coco_ground_truth, make_coco

DOG = ("dog", (1, 1, 64, 48), 0)


def test_real_files_box_for_box(data_root):
    trees = data_root / "voc_trees"
    if not trees.is_dir():
        pytest.skip("the folder of real test data has no voc_trees")
    splits = load_detection_dataset(trees)
    seen, names = 0, class_names(splits)
    assert names == ["Alive", "Dead", "Tree"]
    for split, name in (("train", "train"), ("validation", "val")):
        listed = (trees / "ImageSets" / "Main" / f"{name}.txt").read_text().split()
        assert splits[split]["file_name"] == [f"{stem}.jpg" for stem in listed]
        audit_dataset(splits[split])
        for row, stem in zip(splits[split], listed, strict=True):
            root = ElementTree.parse(trees / "Annotations" / f"{stem}.xml").getroot()
            expected = []
            for each in root.iter("object"):
                x0, y0, x1, y1 = (float(each.find(f"bndbox/{k}").text) for k in ("xmin", "ymin", "xmax", "ymax"))
                # The numbers run from 1 to the width and the height in these files: pixels, the last one included.
                expected.append([x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1])
            assert row["objects"]["bbox"] == expected
            assert [row["width"], row["height"]] == [int(root.find(f"size/{k}").text) for k in ("width", "height")]
            assert [names[label] for label in row["objects"]["category"]] == [
                e.text for e in root.iterfind("object/name")
            ]
            seen += len(expected)
    assert seen == 377


def test_pixels_count_from_1_unless_a_corner_says_otherwise(voc, caplog):
    root = voc({"train": {"a": annotation([CAT, DOG])}, "val": {"b": annotation([DOG])}})
    with caplog.at_level(logging.INFO):
        splits = load_detection_dataset(root)
    assert splits["train"]["objects"][0]["bbox"] == [[4, 6, 26, 34], [0, 0, 64, 48]]
    assert splits["validation"]["objects"][0]["bbox"] == [[0, 0, 64, 48]]
    assert "count pixels from 1" in caplog.text
    assert load_detection_dataset(root, bbox_format="xyxy")["train"]["objects"][0]["bbox"][0] == [5, 7, 25, 33]
    # A corner of one split decides for all of them.
    for corner in (("dog", (0, 3, 64, 48), 0), ("dog", (1.5, 3, 64, 48), 0)):
        root = voc({"train": {"a": annotation([CAT])}, "val": {"b": annotation([corner])}})
        caplog.clear()
        with caplog.at_level(logging.INFO):
            splits = load_detection_dataset(root, class_names=["cat", "dog"])
        assert splits["train"]["objects"][0]["bbox"] == [[5, 7, 25, 33]]
        assert "edges that count from 0: 1 of 2 boxes" in caplog.text


def test_a_box_of_one_pixel(voc):
    root = voc({"train": {"a": annotation([("cat", (5, 7, 5, 7), 0)])}})
    assert load_detection_dataset(root)["train"]["objects"][0]["bbox"] == [[4, 6, 1, 1]]


def test_shares_of_the_picture_are_refused(voc):
    root = voc({"train": {"a": annotation([("cat", (0.1, 0.2, 0.5, 0.6), 0), ("cat", (0.3, 0.2, 0.7, 0.9), 0)])}})
    with pytest.raises(DetectionDataError, match=r"make sense only as 'xyxyn'.*object 1"):
        load_detection_dataset(root)
    boxes = load_detection_dataset(root, bbox_format="xyxyn")["train"]["objects"][0]["bbox"]
    assert boxes[0] == pytest.approx([6.4, 9.6, 25.6, 19.2])


def test_difficult_objects_are_no_targets_and_not_scored(voc):
    easy, hard = ("cat", (1, 1, 20, 20), 0), ("cat", (31, 11, 60, 40), 1)
    split = load_detection_dataset(voc({"train": {"a": annotation([easy, hard])}}))["train"]
    assert split["objects"][0]["iscrowd"] == [False, True]

    def score(*boxes, truth=None):
        truth = truth or coco_ground_truth(split)
        found = [
            {"id": i, "image_id": 0, "category_id": 0, "bbox": box, "score": 0.9 - 0.1 * i, "area": box[2] * box[3],
             "iscrowd": 0}
            for i, box in enumerate(boxes, start=1)
        ]  # fmt: skip
        run = COCOeval(truth, make_coco(truth.dataset["images"], found, truth.dataset["categories"]), "bbox")
        run.params.iouThrs = np.array([0.5])
        run.evaluate()
        cell = run.evalImgs[0]
        return [bool(flag) for flag in cell["dtIgnore"][0]], [int(m) for m in cell["dtMatches"][0]], cell["gtIgnore"]

    exact, twice, part, elsewhere = [30, 10, 30, 30], [31, 11, 29, 29], [32, 12, 10, 10], [0, 30, 15, 15]
    ignored, matched, truth_ignored = score([0, 0, 20, 20], exact, twice, part, elsewhere)
    assert list(truth_ignored) == [0, 1]  # the difficult one is not to be found
    assert ignored == [False, True, True, True, False]  # and whatever is on it does not count
    assert matched[0] == 1 and matched[4] == 0
    # The challenge's own rule, by IoU: it ignores those of IoU .5 or more, which are among ours.
    truth = coco_ground_truth(split)
    for each in truth.dataset["annotations"]:
        each["area"] = 1e11 if each["iscrowd"] else each["area"]  # pycocotools ignores what no range of areas holds
        each["iscrowd"] = 0
    by_iou, _, gt_ignored = score([0, 0, 20, 20], exact, part, truth=truth)
    assert list(gt_ignored) == [0, 1] and by_iou == [False, True, False]


def test_layouts(tmp_path, write_image):
    for split in ("train", "valid"):
        write_image(tmp_path / "beside" / split / "a.jpg")
        (tmp_path / "beside" / split / "a.xml").write_text(annotation())
        write_image(tmp_path / "folders" / split / "images" / "a.jpg")
        (tmp_path / "folders" / split / "annotations").mkdir()
        (tmp_path / "folders" / split / "annotations" / "a.xml").write_text(annotation())
    write_image(tmp_path / "one" / "images" / "a.png")
    (tmp_path / "one" / "annotations").mkdir()
    (tmp_path / "one" / "annotations" / "a.xml").write_text(annotation(name="a.png"))
    for name in ("beside", "folders"):
        splits = load_detection_dataset(tmp_path / name)
        assert [len(splits[key]) for key in ("train", "validation")] == [1, 1]
    assert load_detection_dataset(tmp_path / "one")["train"][0]["file_name"] == "a.png"
    (tmp_path / "kit" / "VOCdevkit").mkdir(parents=True)
    (tmp_path / "one").rename(tmp_path / "kit" / "VOCdevkit" / "VOC2012")
    with pytest.raises(DetectionDataError, match="its folder VOC2012 is Pascal VOC: give"):
        load_detection_dataset(tmp_path / "kit" / "VOCdevkit")


def test_lists_of_single_classes_are_no_splits(voc):
    root = voc({"train": {"a": annotation()}, "val": {"b": annotation()}, "trainval": {"c": annotation()}})
    for name in ("cat_train", "cat_val", "dog_val"):
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("a  1\nb -1\n")
    splits = load_detection_dataset(root)
    assert {name: len(split) for name, split in splits.items()} == {"train": 1, "validation": 1}


def test_masks_of_objects(voc):
    root = voc({"train": {"a": annotation([("cat", (5, 7, 30, 40), 0), ("dog", (33, 3, 60, 44), 0)])}})
    numbers = np.zeros((48, 64), np.uint8)
    numbers[6:40, 4:30], numbers[2:44, 32:60], numbers[6:40, 30] = 1, 2, 255
    (root / "SegmentationObject").mkdir()
    Image.fromarray(numbers).convert("P").save(root / "SegmentationObject" / "a.png")
    row = load_detection_dataset(root, task="segmentation")["train"][0]
    masks = [coco_segmentation(each, 48, 64) for each in row["objects"]["segmentation"]]
    column = np.empty(2, object)
    column[:] = masks
    drawn = rasterise(column, (0, 0, 64, 48), (48, 64))
    assert (drawn[0] == (numbers == 1)).all() and (drawn[1] == (numbers == 2)).all()
    Image.fromarray(np.where(numbers == 2, 3, numbers).astype(np.uint8)).save(root / "SegmentationObject" / "a.png")
    with pytest.raises(DetectionDataError, match=r"a.png: has the object 3, but the XML file has 2"):
        load_detection_dataset(root, task="segmentation")
    Image.fromarray(numbers[:, :50]).save(root / "SegmentationObject" / "a.png")
    with pytest.raises(DetectionDataError, match=r"has the shape \(50, 48\), its picture \(64, 48\)"):
        load_detection_dataset(root, task="segmentation")


def test_polygons_of_objects(voc):
    corners = [5, 7, 30, 7, 30, 40, 5, 40]
    inside = "".join(f"<{'xy'[i % 2]}{i // 2 + 1}>{v}</{'xy'[i % 2]}{i // 2 + 1}>" for i, v in enumerate(corners))
    root = voc({"train": {"a": annotation(inside=f"<polygon>{inside}</polygon>")}})
    row = load_detection_dataset(root, task="segmentation")["train"][0]
    assert coco_segmentation(row["objects"]["segmentation"][0], 48, 64) == [corners]
    with pytest.raises(DetectionDataError, match="no keypoints; take boxes alone, with a model for detection"):
        load_detection_dataset(root, task="keypoints")


def test_sizes_that_are_missing_are_read_from_the_picture(voc):
    root = voc({"train": {"a": annotation(size=None), "b": annotation(size=(0, 0))}})
    train = load_detection_dataset(root)["train"]
    assert train["width"] == [64, 64] and train["height"] == [48, 48]


def test_the_name_of_the_xml_file_names_the_picture(voc, write_image, caplog):
    root = voc({"train": {"a": annotation(name="C:\\old\\IMG_1.jpg")}})
    assert load_detection_dataset(root)["train"][0]["file_name"] == "a.jpg"
    assert "filename of 1 XML file names another picture" in caplog.text
    write_image(root / "JPEGImages" / "IMG_1.jpg")
    (root / "Annotations" / "a.xml").write_text(annotation(name="IMG_1.jpg"))
    with pytest.raises(DetectionDataError, match=r"a.xml: field filename is 'IMG_1.jpg', but .*a.jpg.* both exist"):
        load_detection_dataset(root)
    (root / "JPEGImages" / "a.jpg").unlink()
    assert load_detection_dataset(root)["train"][0]["file_name"] == "IMG_1.jpg"


def test_a_test_list_without_annotations_is_left_out(voc, caplog):
    root = voc({"train": {"a": annotation()}})
    (root / "ImageSets" / "Main" / "test.txt").write_text("x\ny\n")
    assert list(load_detection_dataset(root)) == ["train"]
    assert "the test split is left out" in caplog.text
    with pytest.raises(DetectionDataError, match="none of its 2 pictures has an XML file"):
        load_detection_dataset(root, test_split="test")


def test_folders_below_the_annotations(voc, write_image, caplog):
    root = voc({"train": {"a": annotation()}})
    (root / "ImageSets" / "Main" / "train.txt").unlink()
    for batch in ("one", "two"):
        (root / "Annotations" / batch).mkdir()
        (root / "Annotations" / batch / "a.xml").write_text(annotation([DOG], name="a.jpg"))
        write_image(root / "JPEGImages" / batch / "a.jpg")
    train = load_detection_dataset(root)["train"]
    assert train["file_name"] == ["a.jpg", "one/a.jpg", "two/a.jpg"]
    assert [len(row["objects"]["bbox"]) for row in train] == [1, 1, 1] and class_names(train) == ["cat", "dog"]
    (root / "ImageSets" / "Main" / "train.txt").write_text("two/a\none/a.jpg\n")
    assert load_detection_dataset(root)["train"]["file_name"] == ["two/a.jpg", "one/a.jpg"]
    assert "1 XML file is in none of the splits ['train'] and left out, such as Annotations/a.xml" in caplog.text
    (root / "ImageSets" / "Main" / "train.txt").unlink()
    # Two files must not get one picture.
    (root / "JPEGImages" / "two" / "a.jpg").unlink()
    with pytest.raises(DetectionDataError, match=r"two/a.xml: .*Annotations/a.xml has the same picture, .*a.jpg"):
        load_detection_dataset(root)
    (root / "Annotations" / "two").rename(root / "Annotations" / "val")
    with pytest.raises(DetectionDataError, match="its folder val has the name of a split"):
        load_detection_dataset(root)


def test_xml_files_and_pictures_that_no_split_has_are_counted(tmp_path, write_image, caplog):
    for name in ("train/a", "train/more/b", "old/c"):
        write_image(tmp_path / f"{name}.jpg")
        (tmp_path / f"{name}.xml").write_text(annotation())
    write_image(tmp_path / "train" / "more" / "x.jpg")
    write_image(tmp_path / "valid" / "z.jpg")
    splits = load_detection_dataset(tmp_path)
    assert list(splits) == ["train"] and splits["train"]["file_name"] == ["a.jpg", "more/b.jpg"]
    assert "1 XML file is in none of the splits ['train'] and left out, such as old/c.xml" in caplog.text
    assert "valid: has no XML files of Pascal VOC, so there is no such split" in caplog.text
    assert "1 picture is left out, without an XML file, such as more/x" in caplog.text


def test_names_with_blanks_in_lists(voc):
    root = voc({"train": {"frame 0": annotation(), "frame 1": annotation()}, "val": {"b 1.5": annotation()}})
    splits = load_detection_dataset(root)
    assert splits["train"]["file_name"] == ["frame 0.jpg", "frame 1.jpg"]
    assert splits["validation"]["file_name"] == ["b 1.5.jpg"]
    # One file that is gone does not make the list another kind of list.
    (root / "Annotations" / "frame 0.xml").unlink()
    with pytest.raises(DetectionDataError, match=r"train.txt: 'frame 0' has no .*frame 0.xml"):
        load_detection_dataset(root)
    for name in ("train", "val"):
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("x 1\ny -1\n")
    with pytest.raises(DetectionDataError, match=r"whether a class is in it \(train.txt\).*write one such as"):
        load_detection_dataset(root)
