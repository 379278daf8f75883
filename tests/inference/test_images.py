import os
import re
import sys
import types
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from rfdetr_hf import RFDETRImageProcessor, draw_detections, find_images
from rfdetr_hf.cli.main import main
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.pipeline.pixels import set_max_image_pixels
from rfdetr_hf.inference.images import unique_names


def test_files_folders_and_upright_images(tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    Image.new("RGB", (10, 20)).save(tmp_path / "b" / "c" / "2.png")
    Image.new("L", (10, 20)).save(tmp_path / "b" / "1.jpg")
    turned = Image.new("RGB", (10, 20))
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "t.jpg", exif=turned.getexif())
    (tmp_path / "b" / "notes.txt").write_text("x")
    for name in ("@eaDir/1.jpg", "__MACOSX/1.jpg", "._1.jpg"):
        (tmp_path / "b" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "b" / name).write_bytes(b"x")
    found = list(find_images([tmp_path / "b", str(tmp_path / "t.jpg")]))
    assert [item.name for item in found] == ["1", "c/2", "t"]
    assert [item.image.size for item in found] == [(10, 20), (10, 20), (20, 10)]
    assert all(item.image.mode == "RGB" for item in found)


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, error in (("a.txt", ValueError), ("empty", FileNotFoundError), ("none", FileNotFoundError)):
        with pytest.raises(error, match=name):
            list(find_images([tmp_path / name]))


def test_names_are_unique_among_all_that_is_asked_for(tmp_path):
    for name in ("a/1.jpg", "b/1.jpg", "c/1.png", "c/1.jpg", "c/deep/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    asked = [tmp_path / "a" / "1.jpg", tmp_path / "b" / "1.jpg", tmp_path / "c", tmp_path / "c" / "1.png"]
    names = {str(item.source.relative_to(tmp_path)): item.name for item in find_images(asked)}
    expected = {"a/1.jpg": "a/1", "b/1.jpg": "b/1", "c/1.png": "1.png", "c/1.jpg": "c/1", "c/deep/2.png": "deep/2"}
    assert names == expected
    again = {str(item.source.relative_to(tmp_path)): item.name for item in find_images(asked[::-1])}
    assert again["c/1.jpg"] == "c/1" and len(set(again.values())) == 5


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["/x/clip.mp4", "/x/clip-000000.png"], ["clip.mp4", "clip-000000.png"]),
        (["/x/clip-000000.png"], ["clip-000000"]),
        (["/x/A.png", "/y/a.png"], ["x/A", "y/a"]),
        (["/x/a.png", "/x/A.png"], ["x/a", "x/A"]),
        (["/1.png", "/a/1.png", "/b/a/1.png"], ["1", "a/1", "b/a/1"]),
    ],
)
def test_names_that_would_meet_grow(files, names):
    found = unique_names({Path(file): 1 for file in files})
    assert len(set(found.values())) == len(files)
    assert list(found.values()) == names


def fake_imageio(frames):
    parent, module = types.ModuleType("imageio"), types.ModuleType("imageio.v3")
    module.imiter = lambda file: iter(frames)
    parent.v3 = module
    return {"cv2": None, "imageio": parent, "imageio.v3": module}


def test_frames_of_a_video(tmp_path, monkeypatch):
    (tmp_path / "clip.mp4").write_bytes(b"x")
    frames = [np.full((4, 6, 3), i, np.uint8) for i in range(5)]
    for name, module in fake_imageio(frames).items():
        monkeypatch.setitem(sys.modules, name, module)
    found = list(find_images([tmp_path / "clip.mp4"], every=2))
    assert [item.name for item in found] == ["clip-000000", "clip-000002", "clip-000004"]
    assert found[2].image.size == (6, 4) and found[2].image.getpixel((0, 0)) == (4, 4, 4)


@pytest.mark.parametrize("header", [{"n_images": 9}, {"fps": 10.0, "duration": 1.2}])
def test_a_cut_video_is_named_by_imageio_too(tmp_path, monkeypatch, header):
    (tmp_path / "clip.mp4").write_bytes(b"x")
    modules = fake_imageio([np.zeros((4, 6, 3), np.uint8)] * 5)
    module = modules["imageio.v3"]
    module.improps = lambda file: types.SimpleNamespace(n_images=header.get("n_images", float("inf")))
    module.immeta = lambda file: header
    for name, value in modules.items():
        monkeypatch.setitem(sys.modules, name, value)
    skipped = []
    assert len(list(find_images([tmp_path / "clip.mp4"], skip=skipped.append))) == 5
    assert len(skipped) == 1 and re.search(r"clip.mp4: 5 of (9|10) frames can be read: the video is cut", skipped[0])
    with pytest.raises(DetectionDataError, match="the video is cut"):
        list(find_images([tmp_path / "clip.mp4"]))
    header.update(n_images=5, fps=4.0)
    skipped.clear()
    list(find_images([tmp_path / "clip.mp4"], skip=skipped.append))
    assert not skipped


def test_the_limit_of_pixels_is_named_where_it_can_be_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # decoding sets it
    monkeypatch.setenv("RFDETR_HF_MAX_IMAGE_PIXELS", "50")
    Image.new("RGB", (10, 12)).save(tmp_path / "a.png")
    with pytest.raises(DetectionDataError, match=r"a.png: the image has too many pixels .*--max_image_pixels"):
        list(find_images([tmp_path / "a.png"]))
    set_max_image_pixels(200)
    assert len(list(find_images([tmp_path / "a.png"]))) == 1


def test_a_video_without_a_reader_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "clip.mp4").write_bytes(b"x")
    for name in ("cv2", "imageio", "imageio.v3"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[video\]'"):
        list(find_images([tmp_path / "clip.mp4"]))


def test_boxes_masks_and_keypoints_are_drawn_above_the_threshold():
    image = Image.new("RGB", (480, 480))
    detections = {
        "scores": torch.tensor([0.9, 0.2]),
        "labels": torch.tensor([0, 1]),
        "boxes": torch.tensor([[100.0, 100.0, 200.0, 200.0], [300.0, 300.0, 400.0, 400.0]]),
    }
    drawn = draw_detections(image, detections, {0: "a", 1: "b"}, threshold=0.5)
    assert drawn.getpixel((100, 150)) == (230, 25, 75)
    assert drawn.getpixel((300, 350)) == (0, 0, 0)
    assert image.getpixel((100, 150)) == (0, 0, 0)
    masks = torch.zeros(2, 480, 480)
    masks[0, 150:160, 150:160] = 1
    keypoints = torch.tensor([[[170.0, 180.0, 1.0]], [[10.0, 10.0, 1.0]]])
    drawn = draw_detections(image, {**detections, "masks": masks, "keypoints": keypoints}, {0: "a", 1: "b"}, 0.5)
    assert drawn.getpixel((155, 155))[0] > 50 and drawn.getpixel((165, 155)) == (0, 0, 0)
    assert drawn.getpixel((170, 180)) == (230, 25, 75) and drawn.getpixel((10, 10)) == (0, 0, 0)


def test_what_is_no_file_and_what_cannot_be_read_is_counted_and_costs_the_others_nothing(tmp_path, monkeypatch):
    for name in ("a.png", "locked/b.png", "sub/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    real = os.scandir

    def refuse(path):
        if os.path.basename(os.fspath(path)) == "locked":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    skipped = []
    assert [each.name for each in find_images([tmp_path], skip=skipped.append)] == ["a", "sub/c"]
    assert len(skipped) == 2 and "gone.jpg: is no file" in skipped[0] and "locked: cannot be read" in skipped[1]
    with pytest.raises(DetectionDataError, match="gone.jpg: is no file|locked: cannot be read"):
        list(find_images([tmp_path]))


@pytest.mark.parametrize("suffix", ["gif", "tif", "png", "webp", "jpg"])
def test_further_frames_are_named_and_an_error_when_strict(tmp_path, tiny_model, suffix, capsys):
    frames = [Image.effect_noise((40, 30), 20 + 40 * i).convert("RGB") for i in range(3)]
    (tmp_path / "in").mkdir()
    file = tmp_path / f"in/many.{suffix}"
    frames[0].save(file, "MPO" if suffix == "jpg" else None, save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / f"in/one.{suffix}")
    said = []
    assert len(list(find_images([tmp_path / "in"], warn=said.append))) == 2
    assert len(said) == 1 and said[0].startswith(f"{file}: it holds 3 pages or frames, of which the first alone")
    tiny_model().save_pretrained(tmp_path / "model")
    RFDETRImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "model")
    words = ["predict", str(tmp_path / "model"), str(tmp_path / "in"), "--output_dir", str(tmp_path / "out")]
    assert main(words) == 0
    text = capsys.readouterr()
    assert f"{file}: it holds 3 pages or frames" in text.out + text.err
    assert main([*words, "--overwrite", "true", "--strict", "true"]) != 0
    text = capsys.readouterr()
    assert f"{file}: it holds 3 pages or frames" in text.out + text.err


def test_rows_with_further_frames_are_named_too(tmp_path, caplog):
    frames = [Image.effect_noise((40, 30), 20 + 40 * i) for i in range(2)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    table = Dataset.from_dict({"image": [str(tmp_path / "a.tif")]}).cast_column("image", datasets.Image())
    table.save_to_disk(str(tmp_path / "saved"))
    assert len(list(find_images([tmp_path / "saved"], split="train"))) == 1
    assert "saved, train, row 0: it holds 2 pages or frames" in caplog.text
