import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

import rfdetr_hf
from rfdetr_hf import RFDETRImageProcessor, parse_arguments
from rfdetr_hf.data.keypoints import ClassKeypoints
from rfdetr_hf.inference.predict import PredictArguments, load_detector, predict
from rfdetr_hf.inference.results import CocoResults, as_records, keypoints_of_classes, run_length

FOUND = {
    "scores": torch.tensor([0.9, 0.4]),
    "labels": torch.tensor([1, 0]),
    "boxes": torch.tensor([[1.0, 2.0, 5.0, 4.0], [0.0, 0.0, 2.0, 2.0]]),
}
NAMES = {0: "a", 1: "b"}


def test_records_and_coco_results_agree_on_what_is_above_the_threshold():
    assert as_records(FOUND, NAMES, 0.5) == [{"label": "b", "score": 0.9, "box": [1.0, 2.0, 5.0, 4.0]}]
    coco = CocoResults(NAMES)
    coco.add("x.jpg", (10, 8), FOUND, 0.5)
    coco.add("y.jpg", (10, 8), FOUND)
    annotations = coco.to_dict()["annotations"]
    assert [(a["image_id"], a["id"], a["category_id"]) for a in annotations] == [(1, 1, 1), (2, 2, 1), (2, 3, 0)]
    assert annotations[0]["bbox"] == [1.0, 2.0, 4.0, 2.0] and annotations[0]["area"] == 8.0


def test_a_coco_file_is_read_by_pycocotools(tmp_path):
    coco = CocoResults(NAMES)
    coco.add("x.jpg", (10, 8), FOUND)
    (tmp_path / "coco.json").write_text(json.dumps(coco.to_dict()))
    assert len(COCO(str(tmp_path / "coco.json")).getAnnIds(catIds=[1])) == 1


SCHEMA = {"classes": [{"names": ["a", "b", "c", "d"], "skeleton": [[0, 1], [2, 3]]}] * 3}


@pytest.fixture
def keypoint_folder(tmp_path, tiny_config):
    torch.manual_seed(0)
    config = tiny_config(num_keypoints_per_class=[4, 4, 4], keypoint_schema=SCHEMA)
    rfdetr_hf.RFDETRForKeypointDetection(config).save_pretrained(tmp_path / "model")
    RFDETRImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "model")
    Image.new("RGB", (90, 70), "white").save(tmp_path / "image.png")
    return tmp_path


def _picture(folder, *words):
    always = ["--model_name_or_path", str(folder / "model"), "--images", str(folder / "image.png")]
    always += ["--output_dir", str(folder / "out"), "--threshold", "0", "--overwrite", "true"]
    (args,) = parse_arguments((PredictArguments,), [*always, *words])
    predict(args, say=lambda line: None)
    return Image.open(folder / "out" / "image.png").convert("RGB").tobytes()


def test_what_of_keypoints_is_drawn_is_chosen_on_the_command_line(keypoint_folder):
    usual = _picture(keypoint_folder, "--task", "keypoints")
    assert usual != _picture(keypoint_folder, "--ellipses", "1")
    assert usual != _picture(keypoint_folder, "--keypoint_threshold", "0.99")


def test_task_that_contradicts_the_model(keypoint_folder):
    with pytest.raises(ValueError, match="--task segmentation: .*model holds a model for keypoints"):
        _picture(keypoint_folder, "--task", "segmentation")
    with pytest.raises(ValueError, match="keypoint threshold 2.0"):
        _picture(keypoint_folder, "--keypoint_threshold", "2")


def test_masks_are_run_lengths_and_give_the_area():
    masks = torch.zeros(2, 8, 10, dtype=torch.bool)
    masks[0, 2:4, 1:5] = True
    rles = [run_length(mask) for mask in masks]
    for given in (masks, rles):
        (record,) = as_records({**FOUND, "masks": given}, NAMES, 0.5)
        assert record["mask"] == json.loads(json.dumps(rles[0])) and record["mask"]["size"] == [8, 10]
        coco = CocoResults(NAMES)
        coco.add("x.jpg", (10, 8), {**FOUND, "masks": given})
        annotations = json.loads(json.dumps(coco.to_dict()))["annotations"]
        assert [a["area"] for a in annotations] == [8, 0]
        assert isinstance(annotations[0]["segmentation"]["counts"], str)
        assert (mask_utils.decode(annotations[0]["segmentation"]) == masks[0].numpy()).all()


def test_keypoints_are_visible_above_the_threshold_and_described():
    classes = [ClassKeypoints(), ClassKeypoints.of(["head", "tail"], skeleton=[(0, 1)])]
    coco = CocoResults(NAMES, classes, keypoint_threshold=0.3)
    points = torch.tensor([[[1.0, 2.0, 0.9], [3.0, 4.0, 0.2]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    coco.add("x.jpg", (10, 8), {**FOUND, "keypoints": points}, 0.5)
    found = coco.to_dict()
    assert found["annotations"][0]["keypoints"] == [1.0, 2.0, 2, 0, 0, 0]
    assert found["annotations"][0]["num_keypoints"] == 1
    assert found["categories"] == [
        {"id": 0, "name": "a"}, {"id": 1, "name": "b", "keypoints": ["head", "tail"], "skeleton": [[1, 2]]},
    ]  # fmt: skip
    assert as_records({**FOUND, "keypoints": points}, NAMES, 0.5)[0]["keypoints"][1] == pytest.approx([3, 4, 0.2])


def test_keypoints_without_names_are_numbered(tiny_config):
    (first, *_) = keypoints_of_classes(tiny_config(num_keypoints_per_class=[2, 2, 2]))
    assert first.names == ("1", "2")
    assert keypoints_of_classes(tiny_config()) == []


@pytest.mark.parametrize(
    ("name", "overrides", "extra"),
    [
        ("RFDETRForInstanceSegmentation", {}, "masks"),
        ("RFDETRForKeypointDetection", {"num_keypoints_per_class": [4, 4, 4]}, "keypoints"),
    ],
)
def test_models_of_other_tasks(tmp_path, tiny_config, name, overrides, extra):
    torch.manual_seed(0)
    getattr(rfdetr_hf, name)(tiny_config(**overrides)).save_pretrained(tmp_path / "model")
    RFDETRImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "model")
    image = Image.new("RGB", (90, 70), "white")
    detect = load_detector(str(tmp_path / "model"))
    assert type(detect.model).__name__ == name
    (found,) = detect([image])
    assert len(found[extra]) == len(found["scores"]) > 0
    image.save(tmp_path / "image.png")
    formats = ["pictures", "json", "coco"]
    args = PredictArguments(str(tmp_path / "model"), [str(tmp_path / "image.png")], str(tmp_path / "out"), formats, 0.0)
    assert predict(args, say=lambda line: None) == 1
    drawn = Image.open(tmp_path / "out" / "image.png")
    assert drawn.getextrema() != ((255, 255),) * 3
    objects = json.loads((tmp_path / "out" / "predictions.json").read_text())["image"]["objects"]
    assert len(objects) > 0 and ("keypoints" in objects[0]) == (extra == "keypoints")
    assert ("mask" in objects[0]) == (extra == "masks")
    coco = COCO(tmp_path / "out" / "coco.json")
    annotation, category = coco.anns[1], coco.cats[0]
    assert len(coco.anns) == len(objects)
    if extra == "masks":
        assert coco.annToMask(annotation).shape == (70, 90) and annotation["area"] == coco.annToMask(annotation).sum()
    else:
        assert category["keypoints"] == ["1", "2", "3", "4"] and len(annotation["keypoints"]) == 12
        assert annotation["num_keypoints"] == sum(v > 0 for v in annotation["keypoints"][2::3])


def test_files_that_are_there_are_not_replaced_silently(keypoint_folder):
    _picture(keypoint_folder)
    names = [str(keypoint_folder / name) for name in ("model", "image.png", "out")]
    again = PredictArguments(names[0], images=[names[1]], output_dir=names[2])
    with pytest.raises(FileExistsError, match="has files: choose another, or replace them with --overwrite true"):
        predict(again)
    onto_itself = replace(again, output_dir=str(keypoint_folder), overwrite=True)
    before = (keypoint_folder / "image.png").read_bytes()
    with pytest.raises(FileExistsError, match="would replace its source"):
        predict(onto_itself)
    assert (keypoint_folder / "image.png").read_bytes() == before
