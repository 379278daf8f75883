"""One reading of every picture, kept for the next time."""

import shutil

from helpers.findings import audit, kinds
from PIL import Image

from rfdetr_hf import audit_data, load_detection_dataset
from rfdetr_hf.data import scan
from rfdetr_hf.data.fingerprint import data_hash


def test_what_has_not_changed_is_not_read_again(sound_folder, tmp_path, monkeypatch):
    reads = []
    real = scan.check_image
    monkeypatch.setattr(
        scan, "check_image", lambda row, **kwargs: (reads.append(row["image"]["path"]), real(row, **kwargs))[1]
    )
    first = audit(sound_folder, tmp_path)
    assert len(reads) == 22
    again = audit(sound_folder, tmp_path)
    assert len(reads) == 22 and again.scans["train"].cached == 12
    assert again.scans["train"].pictures == first.scans["train"].pictures
    shutil.copy(sound_folder / "train/train0.jpg", sound_folder / "train/train5.jpg")
    assert ("duplicate pictures", "train") in kinds(audit(sound_folder, tmp_path)) and len(reads) == 23
    for path in (tmp_path / "cache").iterdir():
        path.write_text("{")
    audit(sound_folder, tmp_path)
    assert len(reads) == 45


def test_one_reading_gives_the_checksum_too(sound_folder, tmp_path, monkeypatch):
    splits = load_detection_dataset(sound_folder)
    expected = data_hash(splits)
    scan._DIGESTS.clear()
    audit_data(splits, cache_dir=tmp_path / "cache")
    import builtins

    opened, real = [], builtins.open
    monkeypatch.setattr(
        builtins, "open", lambda path, *args, **kwargs: (opened.append(str(path)), real(path, *args, **kwargs))[1]
    )
    assert data_hash(splits) == expected
    assert not [path for path in opened if path.endswith(".jpg")]
    monkeypatch.undo()
    shutil.copy(sound_folder / "train/train0.jpg", sound_folder / "train/train5.jpg")
    assert data_hash(splits) != expected, "a file that has changed since is read"


def test_another_limit_of_pixels_looks_again(sound_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RFDETR_HF_MAX_IMAGE_PIXELS", "1000000")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    splits = load_detection_dataset(sound_folder)
    assert not audit_data(splits, cache_dir=tmp_path / "cache").serious
    monkeypatch.setenv("RFDETR_HF_MAX_IMAGE_PIXELS", "1000")
    found = kinds(audit_data(splits, cache_dir=tmp_path / "cache"))
    assert found["unreadable pictures", "train"].count == 12
