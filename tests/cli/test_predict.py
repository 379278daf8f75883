"""`rfdetr-hf predict`."""

import json

import pytest
from PIL import Image

from rfdetr_hf import decode_image, load_detection_dataset
from rfdetr_hf.cli.main import main


def write_shapes(folder, count):
    folder.mkdir(parents=True)
    for row in load_detection_dataset("synthetic-shapes")["test"].select(range(count)):
        decode_image(row).save(folder / f"{row['image_id']}.png")


def test_predict_writes_pictures_json_and_coco(saved_model, tmp_path, capsys):
    write_shapes(tmp_path / "in" / "deep", 3)
    Image.new("L", (50, 40)).save(tmp_path / "grey.png")
    argv = ["predict", "--model_name_or_path", str(saved_model), "--threshold", "0.0001", "--batch_size", "2",
            "--images", str(tmp_path / "in"), str(tmp_path / "grey.png"), "--output_dir", str(tmp_path / "out"),
            "--formats", "pictures", "json", "coco"]  # fmt: skip
    assert main(argv) == 0
    pictures = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png"))
    assert pictures[-1] == "grey.png" and len(pictures) == 4
    assert pictures[0].startswith("deep/")
    plain = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(plain) == 4
    coco = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [c["name"] for c in coco["categories"]] == ["circle", "square", "triangle"]
    assert coco["images"][3] == {"id": 4, "file_name": str(tmp_path / "grey.png"), "width": 50, "height": 40}
    found = [a for a in coco["annotations"] if a["image_id"] == 4]
    assert len(found) == len(plain["grey"]["objects"]) > 0
    x, y, width, height = found[0]["bbox"]
    assert plain["grey"]["objects"][0]["box"] == pytest.approx([x, y, x + width, y + height], abs=0.02)
    assert f"{tmp_path / 'out' / 'grey.png'}: {len(found)} objects" in capsys.readouterr().out


def test_predict_without_images_is_misuse(saved_model, capsys):
    assert main(["predict", "--model_name_or_path", str(saved_model)]) == 2
    assert "IMAGES (--images) is missing" in capsys.readouterr().err
