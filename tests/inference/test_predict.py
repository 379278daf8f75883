import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

import rfdetr_hf
from rfdetr_hf import (
    ImageDetector,
    NamedImage,
    PredictArguments,
    RFDETRImageProcessor,
    load_model,
    parse_arguments,
    predict,
)
from rfdetr_hf.cli.main import main
from rfdetr_hf.inference.images import unique_names
from rfdetr_hf.inference.predict import load_detector

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
    with pytest.raises(ValueError, match=r"keypoint_threshold=2.0 is not valid: it must be a number, in \[0, 1\)"):
        _picture(keypoint_folder, "--keypoint_threshold", "2")
    with pytest.raises(ValueError, match="threshold=50.0 is not valid: it must be a number, at most 1"):
        _picture(keypoint_folder, "--threshold", "50")
    with pytest.raises(ValueError, match="that of 'circle'=50 must be a number of at most 1"):
        _picture(keypoint_folder, "--thresholds", '{"circle": 50}')


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
    assert predict(args, say=lambda line: None).images == 1
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


def test_a_second_prediction_without_a_folder_goes_into_the_next(keypoint_folder, monkeypatch):
    """Before, the second picture of a newcomer was refused for the first one's folder."""
    _picture(keypoint_folder)
    monkeypatch.chdir(keypoint_folder)
    said = []
    for _ in range(3):
        predict(PredictArguments("model", images=["image.png"]), say=said.append)
    assert "predictions has files: what is found goes to predictions-2" in said
    for name in ("predictions", "predictions-2", "predictions-3"):
        assert [file.name for file in Path(name).iterdir()] == ["image.png"]
    Path("predictions-4").touch()
    Path("predictions-5").mkdir()
    predict(PredictArguments("model", images=["image.png"]), say=said.append)
    assert [file.name for file in Path("predictions-5").iterdir()] == ["image.png"], "it had no files"


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


@pytest.fixture
def folder(tmp_path, tiny_config):
    """A model for three classes, and a folder of five images."""
    torch.manual_seed(0)
    rfdetr_hf.RFDETRForObjectDetection(tiny_config()).save_pretrained(tmp_path / "model")
    RFDETRImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "model")
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 60, 80, 3), dtype=np.uint8)
    for number, each in enumerate(pixels):
        Image.fromarray(each).save(tmp_path / "images" / f"{number}.jpg")
    return tmp_path


def command(folder, *words, images="images", out="out"):
    always = ["--model_name_or_path", str(folder / "model"), "--images", str(folder / images)]
    return main(["predict", *always, "--output_dir", str(folder / out), "--threshold", "0", *words])


def test_one_bad_file_costs_no_other(folder, capsys):
    truncated = (folder / "images" / "3.jpg").read_bytes()[:400]
    (folder / "images" / "3.jpg").write_bytes(truncated)
    (folder / "images" / "text.png").write_text("no picture")
    (folder / "images" / "._0.jpg").write_bytes(b"\0\5\26\7 of macOS")
    assert command(folder, "--formats", "pictures", "json", "coco") == 1
    printed = capsys.readouterr().out
    assert "skipped" in printed and "3.jpg" in printed and "text.png" in printed and "._0" not in printed
    assert sorted(json.loads((folder / "out" / "predictions.json").read_text())) == ["0", "1", "2", "4"]
    content = json.loads((folder / "out" / "coco.json").read_text())
    assert len(content["images"]) == 4 and len(list((folder / "out").glob("*.png"))) == 4
    assert {a["image_id"] for a in content["annotations"]} == {1, 2, 3, 4}
    assert len({a["id"] for a in content["annotations"]}) == len(content["annotations"])
    assert COCO(str(folder / "out" / "coco.json")).getImgIds() == [1, 2, 3, 4]


def test_strict_stops_at_a_bad_file_and_keeps_what_was_found(folder, capsys):
    (folder / "images" / "3.jpg").write_bytes((folder / "images" / "3.jpg").read_bytes()[:400])
    words = ("--strict", "true", "--batch_size", "1", "--formats", "json", "coco")
    assert command(folder, *words) == 1
    assert "3.jpg" in capsys.readouterr().err
    assert sorted(json.loads((folder / "out" / "predictions.json").read_text())) == ["0", "1", "2"]
    assert len(json.loads((folder / "out" / "coco.json").read_text())["images"]) == 3


def test_all_bad_is_an_error(folder, capsys):
    (folder / "bad").mkdir()
    (folder / "bad" / "a.png").write_bytes(b"x")
    assert command(folder, images="bad") == 1
    assert "a.png" in capsys.readouterr().err
    good = folder / "good"
    assert command(folder, out=good.name) == 0


def test_results_are_written_as_they_come(folder):
    seen = []

    def images():
        for number in range(6):
            text = (folder / "out" / "predictions.json").read_text() if number else ""
            seen.append(text.count('"source"'))
            yield NamedImage(f"frame-{number}", folder / "clip.mp4", Image.new("RGB", (64, 64)), number)

    args = PredictArguments(
        str(folder / "model"), output_dir=str(folder / "out"), formats=["json", "coco"], batch_size=1, threshold=-1.0
    )
    assert predict(args, images(), say=lambda line: None) == (6, [])
    assert seen == [0, 1, 2, 3, 4, 5]
    names = [image["file_name"] for image in json.loads((folder / "out" / "coco.json").read_text())["images"]]
    assert names == [f"frame-{number}.png" for number in range(6)], "frames have names of their own"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a disk that is always full")
@pytest.mark.parametrize(("form", "name"), [("json", "predictions.json"), ("jsonl", "predictions.jsonl"),
                                            ("coco", "coco.json")])  # fmt: skip
def test_a_full_disk_names_the_file_and_what_is_done(folder, capsys, form, name):
    (folder / "out").mkdir()
    (folder / "out" / name).symlink_to("/dev/full")
    assert command(folder, "--formats", form, "--overwrite", "true") == 1
    said = capsys.readouterr().err
    assert name in said and "No space left" in said
    assert "0 images were done before" in said


def test_a_cut_video_is_named(folder, capsys):
    cv2 = pytest.importorskip("cv2")
    path = folder / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (80, 60))
    rng = np.random.default_rng(0)
    for _ in range(20):
        writer.write(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8))
    writer.release()
    assert command(folder, "--formats", "coco", images="clip.avi") == 0
    images = json.loads((folder / "out" / "coco.json").read_text())["images"]
    assert len(images) == len({image["file_name"] for image in images}) == 20
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    assert command(folder, "--formats", "json", images="clip.avi", out="cut") == 1
    assert "of 20 frames" in capsys.readouterr().out
    assert 0 < len(json.loads((folder / "cut" / "predictions.json").read_text())) < 20


def test_names_that_are_no_text_are_printed_escaped(folder, monkeypatch):
    """A terminal of UTF-8 refuses what stands in for the bytes of such a name."""
    os.rename(folder / "images" / "2.jpg", os.fsencode(folder / "images") + b"/bad\xff.jpg")
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "utf-8", errors="strict", write_through=True))
    assert command(folder, "--formats", "json") == 0
    assert rb"bad\udcff.jpg: " in printed.getvalue()
    assert len(json.loads((folder / "out" / "predictions.json").read_text())) == 5


def test_patterns_and_what_is_no_file(folder, capsys):
    assert command(folder, "--formats", "json", images="images/[01].jpg") == 0
    assert sorted(json.loads((folder / "out" / "predictions.json").read_text())) == ["0", "1"]
    for address in ("https://example.org/a.jpg", "rtsp://1.2.3.4/s"):
        words = ["predict", "--model_name_or_path", str(folder / "no model"), "--images", address]
        assert main([*words, "--output_dir", str(folder / "no")]) == 1
        assert f"{address} is an address" in capsys.readouterr().err


def test_thresholds_by_class(folder, capsys):
    def found(*words, out):
        assert command(folder, "--formats", "json", *words, out=out) == 0
        images = json.loads((folder / out / "predictions.json").read_text()).values()
        return sorted((o["label"], o["score"]) for image in images for o in image["objects"])

    everything = found(out="all")
    names = {name for name, _ in everything}
    assert len(names) > 1
    one = min(names)
    (folder / "thresholds.json").write_text(json.dumps({one: 1.0}))
    for given in (json.dumps({one: 1.0}), str(folder / "thresholds.json")):
        assert found("--thresholds", given, out=f"out{len(given)}") == [each for each in everything if each[0] != one]
    assert command(folder, "--thresholds", json.dumps({one[:-1]: 0.5}), out="wrong") == 1
    assert f"did you mean {one!r}" in capsys.readouterr().err


def test_thresholds_of_a_detector(tiny_config):
    processor = RFDETRImageProcessor(size={"height": 64, "width": 64})
    model = rfdetr_hf.RFDETRForObjectDetection(tiny_config())
    image = Image.new("RGB", (90, 70), "white")
    (every,) = rfdetr_hf.ImageDetector(model, processor)([image])
    least = [0.0, 1.0, float(every["scores"].median())]
    (kept,) = rfdetr_hf.ImageDetector(model, processor, threshold=least)([image])
    expected = every["scores"] > torch.tensor(least)[every["labels"]]
    assert torch.equal(kept["boxes"], every["boxes"][expected])
    for wrong in ([0.5], {"no such class": 0.5}, [0.5, None, 0.5]):
        with pytest.raises(ValueError, match="thresholds"):
            rfdetr_hf.ImageDetector(model, processor, threshold=wrong)


def test_classes_without_keypoints_keep_their_detections(tiny_config):
    """Their scores x come as x / (1 + x): a threshold of .5 would leave none of them."""
    processor = RFDETRImageProcessor(size={"height": 64, "width": 64})
    model = rfdetr_hf.RFDETRForKeypointDetection(tiny_config(num_keypoints_per_class=[4, 0, 4]))
    assert rfdetr_hf.ImageDetector(model, processor, threshold=0.5).thresholds == [0.5, pytest.approx(1 / 3), 0.5]
    assert rfdetr_hf.ImageDetector(model, processor, threshold={"circle": 0.2}).thresholds[0] == 0.2


@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_picture_on_which_the_model_fails_costs_no_other(folder, monkeypatch, capsys, batch_size):
    real = ImageDetector.__call__

    def fails(self, images, scale=1.0):
        if any(image.size == (33, 44) for image in images):
            raise RuntimeError("out of memory")
        return real(self, images, scale)

    monkeypatch.setattr(ImageDetector, "__call__", fails)
    Image.new("RGB", (33, 44)).save(folder / "images" / "2.jpg")
    words = ("--formats", "json", "--batch_size", str(batch_size))
    assert command(folder, *words) == 1
    printed = capsys.readouterr().out
    assert printed.count("2.jpg: RuntimeError: out of memory") == 1 and "skipped or not complete: 1 file;" in printed
    assert sorted(json.loads((folder / "out" / "predictions.json").read_text())) == ["0", "1", "3", "4"]
    assert command(folder, *words, "--strict", "true", out="strict") == 1
    assert "out of memory" in capsys.readouterr().err


def test_a_model_that_fails_on_every_picture_ends_at_the_first(folder, monkeypatch, capsys):
    monkeypatch.setattr(ImageDetector, "__call__", lambda *_: 1 / 0)
    assert command(folder) == 1
    printed = capsys.readouterr()
    assert "0.jpg: ZeroDivisionError: division by zero; on a plain image too" in printed.err
    assert "skipped" not in printed.out


def test_long_names_of_files_and_classes_stay_names_of_files_and_differ(folder):
    model = load_model(str(folder / "model"))
    model.config.id2label = {0: "c" * 250 + "1", 1: "c" * 250 + "2", 2: "ä" * 250}
    model.config.label2id = {name: label for label, name in model.config.id2label.items()}
    model.save_pretrained(folder / "model")
    (folder / "long" / ("d" * 250)).mkdir(parents=True)
    for name in ("x" * 250 + "1", "x" * 250 + "2", "d" * 250 + "/" + "ü" * 120):
        Image.new("RGB", (70, 60), "white").save(folder / "long" / f"{name}.png")
    formats = ("pictures", "json", "coco", "yolo", "crops")
    assert command(folder, "--formats", *formats, images="long") == 0
    names = list(json.loads((folder / "out" / "predictions.json").read_text()))
    assert len(names) == 3 and all(len(part.encode()) <= 200 for name in names for part in name.split("/"))
    assert all((folder / "out" / f"{name}.png").is_file() for name in names)
    assert len(list((folder / "out" / "crops").iterdir())) == 3
    again = {Path("/in") / ("x" * 250 + ".png"): 1}
    (short,) = unique_names(again).values()
    assert len(set(unique_names({**again, Path("/out") / f"{short}.png": 1}).values())) == 2


def test_where_nothing_is_above_the_threshold_the_highest_score_is_told(keypoint_folder):
    """And no folder of crops is named that is not there."""
    lines, folder = list[str](), str(keypoint_folder / "out")
    always = ["--model_name_or_path", str(keypoint_folder / "model"), "--images", str(keypoint_folder / "image.png")]
    always += ["--output_dir", folder, "--overwrite", "true", "--formats", "json", "crops"]

    def run(*words):
        lines.clear()
        (args,) = parse_arguments((PredictArguments,), [*always, *words])
        predict(args, say=lines.append)
        return "\n".join(lines)

    told = run("--threshold", "0.999")
    score = float(told.split("the highest score is ")[1].split(" ")[0])
    assert told.endswith("; a lower --threshold shows more") and "crops" not in told and "predictions.json" in told
    least = f"{score * 0.98:.4f}"
    assert "highest" not in run("--threshold", least) and "crops: 1 image" in "\n".join(lines)
    assert "--threshold or --thresholds" in run("--thresholds", '{"circle": 0.999}', "--threshold", "0.999")


def test_thresholds_of_classes_with_numbers_for_names(folder, tiny_config, capsys):
    rfdetr_hf.RFDETRForObjectDetection(tiny_config(("1", "2", "yes"))).save_pretrained(folder / "model")
    (folder / "run.yaml").write_text("thresholds:\n  1: 1.0\n  yes: 1\n")

    def labels(*words, out):
        assert command(folder, "--formats", "json", *words, out=out) == 0
        images = json.loads((folder / out / "predictions.json").read_text()).values()
        return {o["label"] for image in images for o in image["objects"]}

    every = labels(out="all")
    assert "1" in every and len(every) > 1
    assert labels("--thresholds", "{1: 1.0}", out="one") == every - {"1"}
    assert labels("--config", str(folder / "run.yaml"), out="two") == every - {"1", "yes"}
    assert command(folder, "--thresholds", "{01: 1.0}", out="wrong") == 1
    assert "no class '01'" in capsys.readouterr().err
