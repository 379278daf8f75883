"""The audit of a data set: each kind of finding from data that has it, and none from data that has not."""

import shutil

import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from helpers.findings import audit, edit, kinds
from PIL import Image

from rfdetr_hf import (
    audit_data,
    convert_dataset,
    load_detection_dataset,
    make_shapes_dataset,
    notes_of_reading,
    write_audit_page,
)
from rfdetr_hf.data import findings
from rfdetr_hf.data.findings import find_in_annotations
from rfdetr_hf.data.shards import writer


def test_sound_data_has_no_findings(sound_folder, tmp_path):
    found = audit(sound_folder, tmp_path, num_queries=300, resolution=384)
    assert found.findings == [] and "nothing odd was found" in str(found)
    assert found.reports["train"].num_boxes == 24 and len(found.scans["validation"].pictures) == 10


def test_copies_within_and_between_splits(sound_folder, tmp_path):
    shutil.copy(sound_folder / "train/train0.jpg", sound_folder / "train/train5.jpg")
    shutil.copy(sound_folder / "train/train1.jpg", sound_folder / "valid/valid3.jpg")
    found = kinds(audit(sound_folder, tmp_path))
    assert set(found) == {("duplicate pictures", "train"), ("duplicate pictures", "train, validation")}
    assert found["duplicate pictures", "train"].count == 1
    names = {example.name.rsplit("/", 1)[1] for example in found["duplicate pictures", "train, validation"].examples}
    assert names == {"train1.jpg", "valid3.jpg"}


def test_near_copies(sound_folder, tmp_path):
    pytest.importorskip("imagehash")
    Image.open(sound_folder / "train/train1.jpg").save(sound_folder / "valid/valid3.jpg", quality=60)
    Image.open(sound_folder / "train/train2.jpg").resize((80, 60)).resize((160, 120)).save(
        sound_folder / "train/train7.jpg"
    )
    assert audit(sound_folder, tmp_path).findings == []
    found = kinds(audit(sound_folder, tmp_path, near=True))
    assert set(found) == {("near duplicates", "train, validation"), ("near duplicates", "train")}
    assert found["near duplicates", "train, validation"].serious and not found["near duplicates", "train"].serious


def test_near_copies_without_imagehash_say_what_to_install(sound_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "imagehash", None)
    with pytest.raises(ImportError, match="install the extra 'audit'"):
        audit(sound_folder, tmp_path, near=True)


def test_files_in_no_split_and_files_that_cannot_be_read(sound_folder, tmp_path):
    shutil.copy(sound_folder / "train/train1.jpg", sound_folder / "valid/more.jpg")
    data = (sound_folder / "train/train4.jpg").read_bytes()
    splits = load_detection_dataset(sound_folder)
    (sound_folder / "train/train4.jpg").write_bytes(data[: len(data) // 2])
    (sound_folder / "train/train6.jpg").unlink()
    found = kinds(audit_data(splits, cache_dir=tmp_path / "cache"))
    assert set(found) == {("unreferenced files", "validation"), ("unreadable pictures", "train")}
    bad = found["unreadable pictures", "train"]
    assert bad.count == 2 and bad.serious and "train6.jpg: the image file is missing" in bad.text
    headers = kinds(audit_data(splits, decode=False, cache_dir=tmp_path / "cache"))
    assert headers["unreadable pictures", "train"].count == 1, "headers miss what is truncated"


@pytest.mark.parametrize(
    ("orientation", "kind", "frame"),
    [*((way, "EXIF orientation", "the shown picture") for way in (2, 3, 4)), (6, "EXIF not followed", "these")],
)
def test_turned_photographs_are_counted_with_the_frame_of_their_boxes(sound_folder, tmp_path, orientation, kind, frame):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(sound_folder / "train/train4.jpg").save(sound_folder / "train/train4.jpg", exif=exif)
    found = kinds(audit(sound_folder, tmp_path))
    assert set(found) == {(kind, "train")} and not found[kind, "train"].serious
    assert (
        found[kind, "train"].text.startswith("1 picture ") and f"boxes are read in {frame}" in found[kind, "train"].text
    )


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("form", ["TIFF", "GIF", "PNG", "WEBP", "MPO"])
def test_files_of_several_pages_are_counted(sound_folder, tmp_path, form, decode):
    picture = Image.open(sound_folder / "train/train4.jpg").copy()
    pages = [Image.effect_noise(picture.size, 50 + i).convert("RGB") for i in range(2)]
    picture.save(sound_folder / "train/train4.jpg", form, save_all=True, append_images=pages)
    found = kinds(audit(sound_folder, tmp_path, decode=decode))
    assert set(found) == {("pages", "train")}
    assert found["pages", "train"].text.startswith("1 picture has several pages or frames (up to 3)")


@pytest.mark.parametrize("form", ["TIFF", "GIF", "PNG", "WEBP", "MPO", "pyramid", "masked", "gain map", "cut preview"])
def test_smaller_copies_and_single_frames_are_no_pages(sound_folder, tmp_path, form):
    file = sound_folder / "train/train4.jpg"
    picture = Image.open(file).copy()
    picture.info.clear()
    half, grey = picture.resize((80, 60)), picture.convert("L").resize((80, 60))
    if form in ("pyramid", "masked"):
        half.encoderinfo = {"tiffinfo": {254: 1 if form == "pyramid" else 4}}
        picture.save(file, "TIFF", save_all=True, append_images=[half])
    elif form in ("gain map", "cut preview"):
        picture.save(file, "MPO", save_all=True, append_images=[half if form == "cut preview" else grey])
        if form == "cut preview":
            file.write_bytes(file.read_bytes()[:-500])
    else:
        picture.save(file, form, **({} if form == "MPO" else {"save_all": True}))
    assert kinds(audit(sound_folder, tmp_path)) == {}


def test_boxes(sound_folder, tmp_path):
    def spoil(content):
        boxes = [each["bbox"] for each in content["annotations"]]
        boxes[0][2] = 0.5
        boxes[2][2:] = 100, 2
        content["annotations"].append({**content["annotations"][7], "id": 99, "bbox": [70.4, 20, 50, 43]})

    edit(sound_folder, "train", spoil)
    found = kinds(audit(sound_folder, tmp_path))
    assert {kind: each.count for (kind, _), each in found.items()} == {
        "degenerate boxes": 1, "extreme aspect": 1, "duplicate boxes": 1,
    }  # fmt: skip
    assert found["duplicate boxes", "train"].examples[0].objects == (2,)


def test_model_dependent_findings(sound_folder, tmp_path):
    found = kinds(audit(sound_folder, tmp_path, num_queries=1, resolution=16))
    assert {kind for kind, _ in found} == {"crowding", "small boxes"}
    assert found["crowding", "train"].count == 12 and found["small boxes", "validation"].count > 2


def test_boxes_out_of_their_image():
    shapes = make_shapes_dataset(6, image_size=64).to_list()
    shapes[3]["objects"]["bbox"] = [[40.0, 40.0, 60.0, 20.0]] * len(shapes[3]["objects"]["id"])
    features = make_shapes_dataset(1, image_size=64).features
    dataset = Dataset.from_list(shapes, features=features)
    from rfdetr_hf.data.audit import count_split

    found = {each.kind for each in find_in_annotations(dataset, "train", count_split(dataset, "train"))}
    assert "boxes outside" in found


def test_classes(sound_folder, tmp_path):
    def without_dogs(content):
        content["annotations"] = [each for each in content["annotations"] if each["category_id"] == 1]

    edit(sound_folder, "train", without_dogs)
    edit(sound_folder, "valid", lambda content: content["annotations"].__delitem__(slice(6, None)))
    found = kinds(audit(sound_folder, tmp_path))
    assert found["classes not trained", "validation"].text.endswith("dog") and ("background", "validation") in found
    edit(sound_folder, "train", lambda content: content["annotations"].__delitem__(slice(4, None)))
    assert ("rare classes", "train") in kinds(audit(sound_folder, tmp_path))


def test_shards_are_counted_by_their_index_and_some_are_looked_into(sound_folder, tmp_path, monkeypatch):
    splits = load_detection_dataset(sound_folder)
    convert_dataset(splits, tmp_path / "shards", "parquet", 1)
    found = audit_data(load_detection_dataset(tmp_path / "shards"), cache_dir=tmp_path / "cache")
    assert found.findings == [] and found.reports["train"].num_boxes == 24
    assert len(found.scans["train"].rows) == 12 and "decoded" in str(found)
    # Two of six shards, one row of each.
    edit(sound_folder, "train", lambda content: content["annotations"][0]["bbox"].__setitem__(2, 0.5))
    content = (sound_folder / "train/train10.jpg").read_bytes()
    (sound_folder / "train/train10.jpg").write_bytes(content[: len(content) // 2])
    monkeypatch.setattr(writer, "MAX_ROWS", 2)
    convert_dataset(load_detection_dataset(sound_folder), tmp_path / "more", "webdataset", 1)
    monkeypatch.setattr(findings, "_SHARDS", 2)
    found = audit_data(load_detection_dataset(tmp_path / "more"), sample=2, cache_dir=tmp_path / "cache")
    assert found.scans["train"].rows.tolist() == [0, 10] and "decoded, 2 of them" in str(found)
    assert ("degenerate boxes", "train") in kinds(found)
    example = kinds(found)["unreadable pictures", "train"].examples[0]
    assert (example.row, example.name) == (10, "train10.jpg")


def test_a_sample_says_its_size(sound_folder, tmp_path):
    found = audit(sound_folder, tmp_path, sample=5)
    assert found.scans["train"].is_sample and found.scans["train"].rows.tolist() == [0, 2, 5, 8, 11]
    assert "decoded, 5 of them" in str(found)


def test_what_the_reading_repairs_is_a_finding(tmp_path, coco_content, write_coco):
    content = coco_content()
    content["annotations"][0]["bbox"][2] = 0
    write_coco(tmp_path / "train/_annotations.coco.json", content, tmp_path / "train")
    with notes_of_reading() as noted:
        splits = load_detection_dataset(str(tmp_path))
    audit = audit_data(splits, cache_dir="", noted=noted)
    assert [each.text for each in audit.serious if each.kind == "reading" and "no width or no height" in each.text]
    assert "nothing odd" not in str(audit) and "! an error with --strict" in str(audit)
    with notes_of_reading() as again:
        pass
    load_detection_dataset(str(tmp_path))
    assert not again, "only what is read within the block"


def test_the_fullest_image_is_counted_without_crowds(sound_folder, tmp_path):
    def crowd(content):
        for each in content["annotations"][:2]:
            each["iscrowd"] = 1
        content["annotations"][2]["image_id"] = 0

    edit(sound_folder, "train", crowd)
    report = audit(sound_folder, tmp_path).reports["train"]
    assert (report.num_crowds, report.num_boxes, report.max_boxes) == (2, 22, 2)
    assert report.max_boxes_image_id != 0


def test_shards_that_nobody_has_counted_are_not_compared(sound_folder, tmp_path):
    splits = load_detection_dataset(sound_folder)
    convert_dataset({"validation": splits["validation"]}, tmp_path / "counted", "parquet", 1)
    splits["train"].cast_column("image", ImageFeature()).to_parquet(tmp_path / "train.parquet")
    train = load_detection_dataset(f"file://{tmp_path}/train.parquet")["train"]
    counted = load_detection_dataset(tmp_path / "counted", class_names=["cat", "dog"])["validation"]
    found = audit_data({"train": train, "validation": counted}, cache_dir="")
    assert not found.reports["train"].counted and not found.serious
    lines = str(found).splitlines()
    assert lines[1].split()[:6] == ["train", "12", "?", "?", "?", "?"]
    assert lines[5].split() == ["cat", "?", "10"]
    assert "the objects of train are not counted" in str(found)
    values = found.to_dict()["splits"]
    assert values["train"]["num_boxes"] is None and values["validation"]["num_boxes"] == 20
    write_audit_page(found, {"train": train, "validation": counted}, tmp_path / "audit.html")
    assert ">?</td>" in (tmp_path / "audit.html").read_text()


def test_a_warning_is_told_once(tmp_path, coco_content, write_coco, caplog):
    """As a finding; by the log only where the reading ends in an error."""
    content = coco_content()
    content["annotations"][0]["bbox"][2] = 0
    write_coco(tmp_path / "train/_annotations.coco.json", content, tmp_path / "train")
    with caplog.at_level("INFO"), notes_of_reading() as noted:
        load_detection_dataset(str(tmp_path))
    assert any("dropped 1 box (no width" in each for each in noted) and "dropped" not in caplog.text
    assert "1 split: train (train) 2 images" in caplog.text
    with pytest.raises(ValueError), notes_of_reading():
        load_detection_dataset(str(tmp_path), validation_split=0.001)
    assert "dropped 1 box (no width" in caplog.text
