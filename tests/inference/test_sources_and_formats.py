"""What predictions come from and what they become: rows of data sets, JSON lines, YOLO data sets, crops, a bar."""

import io
import json
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from helpers.pictures import noise

from rfdetr_hf import (
    NamedImage,
    PredictArguments,
    RFDETRForObjectDetection,
    RFDETRImageProcessor,
    decode_image,
    find_images,
    load_detection_dataset,
    predict,
)

NAMES = ("a", "A", "b/c: d")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_config):
    """A model, and a folder of pictures whose subfolder is called as that of a YOLO data set."""
    folder = tmp_path_factory.mktemp("sources")
    torch.manual_seed(0)
    RFDETRForObjectDetection(tiny_config(NAMES)).save_pretrained(folder / "model")
    RFDETRImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder / "model")
    (folder / "photos" / "images").mkdir(parents=True)
    noise(0).save(folder / "photos" / "one.jpg")
    noise(1, (50, 90)).save(folder / "photos" / "two.v2.png")
    noise(2).save(folder / "photos" / "images" / "one.jpg")
    return folder


def look(folder, out, formats, images, say=lambda line: None, **options):
    names = [str(folder / name) if "/" not in name else name for name in images]
    args = PredictArguments(
        str(folder / "model"), names, str(folder / out), formats, options.pop("threshold", 0.0), **options
    )
    return predict(args, say=say)


def test_json_lines_yolo_rows_and_crops_say_what_predictions_json_says(folder):
    formats = ["json", "jsonl", "yolo", "crops"]
    assert look(folder, "out", formats, ["photos"]).images == 3
    found = json.loads((folder / "out" / "predictions.json").read_text())
    assert list(found) == ["images/one", "one", "two.v2"] and all(each["objects"] for each in found.values())
    lines = [json.loads(line) for line in (folder / "out" / "predictions.jsonl").read_text().splitlines()]
    assert {line.pop("name"): (line.pop("width"), line.pop("height")) for line in lines} == {
        "images/one": (80, 60), "one": (80, 60), "two.v2": (50, 90),
    }  # fmt: skip
    assert lines == list(found.values())

    yolo = load_detection_dataset(folder / "out" / "yolo")["train"]
    assert yolo.features["objects"]["category"].feature.names == list(NAMES)
    sizes = {"images/one": (80, 60), "one": (80, 60), "two.v2": (50, 90)}
    assert {(row["width"], row["height"]) for row in yolo} == set(sizes.values()) and len(yolo) == 3
    read = {
        row["image"]["path"].split("/yolo/images/")[1].rsplit(".", 1)[0]: (
            row["objects"]["category"],
            row["objects"]["bbox"],
        )
        for row in yolo
    }
    for name, each in found.items():
        boxes = np.array([found["box"] for found in each["objects"]]).clip(0, np.tile(sizes[name], 2))
        boxes[:, 2:] -= boxes[:, :2]
        inside = (boxes[:, 2:] > 0).all(1)
        labels = [NAMES.index(found["label"]) for found in each["objects"]]
        assert read[name][0] == np.array(labels)[inside].tolist()
        np.testing.assert_allclose(read[name][1], boxes[inside], atol=0.02)

    crops = sorted(
        path.relative_to(folder / "out" / "crops").as_posix() for path in (folder / "out").rglob("*-000.png")
    )
    assert {crop.split("/")[0] for crop in crops} <= {"a-0", "A-1", "b_c_ d"} and len(crops) == 3


def test_pictures_of_a_yolo_data_set_are_links_that_nothing_is_written_through(folder):
    look(folder, "linked", ["yolo"], ["photos"])
    link = folder / "linked" / "yolo" / "images" / "two.v2.png"
    assert link.is_symlink() and link.resolve() == folder / "photos" / "two.v2.png"
    before = link.read_bytes()
    (folder / "yolo" / "images").mkdir(parents=True)
    noise(3).save(folder / "yolo" / "images" / "two.v2.png")
    with pytest.raises(FileExistsError, match="would replace its source .*photos"):
        # Its picture with boxes has the name of the link.
        args = PredictArguments(str(folder / "model"), [str(folder)], str(folder / "linked"), ["pictures"], 1.0)
        args.overwrite = True
        predict(
            args, [NamedImage("yolo/images/two.v2", folder / "yolo/images/two.v2.png", noise(3))], lambda line: None
        )
    look(folder, "linked", ["yolo"], ["photos"], overwrite=True)
    assert link.is_symlink() and (folder / "photos" / "two.v2.png").read_bytes() == before


def encoded(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture(scope="module")
def tables(folder):
    """Folders of the same rows, one of which is no picture: of Parquet files and of `save_to_disk`."""
    rows = [encoded(noise(number)) for number in range(3)] + [{"bytes": b"text", "path": None}]
    features = Features({"number": Value("int64"), "picture": ImageFeature()})
    data = Dataset.from_dict({"number": list(range(4)), "picture": rows}, features=features)
    (folder / "parquet").mkdir()
    data.to_parquet(folder / "parquet" / "test-00000-of-00001.parquet")
    DatasetDict(test=data).save_to_disk(folder / "saved")
    return folder


@pytest.mark.parametrize("source", ["parquet", "saved"])
def test_rows_of_a_data_set(tables, source):
    lines = []
    formats = ["json", "coco", "yolo"]
    done = look(tables, f"out-{source}", formats, [source], lines.append, split="test", batch_size=2)
    assert done.images == 3 and len(done.skipped) == 1 and f"{source}, test, row 3: cannot be read" in done.skipped[0]
    out = tables / f"out-{source}"
    found = json.loads((out / "predictions.json").read_text())
    assert [(name, each["row"]) for name, each in found.items()] == [(f"test-{n:06d}", n) for n in range(3)]
    image = json.loads((out / "coco.json").read_text())["images"][2]
    assert (image["file_name"], image["row"], image["dataset"]) == ("test-000002.png", 2, str(tables / source))
    pictures = load_detection_dataset(out / "yolo")["train"]
    assert np.array_equal(np.asarray(decode_image(pictures[1])), np.asarray(noise(1)))


def test_what_is_no_data_set_says_what_to_give(tables, tmp_path):
    def fault(*paths, **options):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            list(find_images([str(path) for path in paths], **options))
        return str(caught.value)

    assert "there is no split 'train'; the splits are ['test']" in fault(tables / "saved", split="train")
    assert "cannot be loaded" in fault(tables / "parquet", split="train")
    assert "2 are named; name one" in fault(tables / "saved", tables / "parquet", split="test")
    assert "it has tables: give the split" in fault(tables / "parquet")
    assert "of a data set on the Hub give the split" in fault("nobody/nothing")
    assert "give the split" not in fault("nobody/photo.jpg")
    assert "download it first (curl -O https://example.org/a.jpg)" in fault("https://example.org/a.jpg")
    assert "save it as a video first" in fault("rtsp://1.2.3.4/s")
    Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "texts")
    assert "no columns of images among ['text']" in fault(tmp_path / "texts", split="train")


def test_a_terminal_gets_a_bar_in_place_of_lines(folder, capsys, monkeypatch):
    look(folder, "piped", ["json"], ["photos"], print)
    assert capsys.readouterr().out.count(" objects") == 3
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    look(folder, "watched", ["json"], ["photos"], print)
    out, err = capsys.readouterr()
    assert " objects" not in out and "predictions.json: 3 images" in out and "3/3" in err
