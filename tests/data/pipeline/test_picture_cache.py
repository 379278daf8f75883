"""Caches of decoded pictures: the same batches with and without, shared by workers, within their limits."""

import errno
import io
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.caches import copy_picture
from helpers.models import tiny_model
from helpers.runs import quick_arguments
from PIL import Image

from rfdetr_hf import RFDETRTrainer, decode_image
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.pipeline import picture_cache
from rfdetr_hf.data.pipeline.loader import LoaderOptions, build_train_dataloader
from rfdetr_hf.data.pipeline.picture_cache import DiskCache, Kept, MemoryCache
from rfdetr_hf.data.pipeline.pixels import Picture
from rfdetr_hf.data.pipeline.transforms import build_train_transform
from rfdetr_hf.data.schema import detection_features

MB = 1 << 20
KINDS = ("ram", "disk")


def make(kind, folder, limit=64 * MB, **options):
    return MemoryCache(limit) if kind == "ram" else DiskCache(folder, limit, **options)


def write_picture(path: Path, seed: int, size=(300, 200), orientation=1) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size).save(path, exif=exif.tobytes() if orientation != 1 else b"")
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    """Twelve pictures, of which some are reduced, some turned and some no JPEG."""
    folder, rows = tmp_path_factory.mktemp("pictures"), []
    for index in range(12):
        turned, suffix = index % 4 == 1, ".png" if index % 4 == 2 else ".jpg"
        path = write_picture(folder / f"{index}{suffix}", index, orientation=6 if turned else 1)
        width, height = (200, 300) if turned else (300, 200)
        objects = {"id": [1], "bbox": [[10, 20, 90, 80]], "category": [0], "area": [7200], "iscrowd": [False]}
        rows.append({"image": {"bytes": None, "path": str(path)}, "image_id": index, "width": width, "height": height,
                     "file_name": path.name, "objects": objects})  # fmt: skip
    return Dataset.from_list(rows, features=detection_features(["circle", "square", "triangle"]))


def epochs(dataset, cache=None, workers=0, count=2, side=64, **options) -> list[torch.Tensor]:
    transform = build_train_transform(side, multi_scale="off")
    options = LoaderOptions(batch_size=4, num_workers=workers, cache=cache, seed=3, **options)
    loader, batches = build_train_dataloader(dataset, transform, options), []
    for epoch in range(count):
        loader.batch_sampler.set_epoch(epoch)
        batches += [batch["pixel_values"] for batch in loader]
    return batches


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_the_same_with_and_without(dataset, kind, workers, tmp_path):
    expected, cache = epochs(dataset), make(kind, tmp_path / "cache")
    for _ in range(2):
        for pixels, plain in zip(epochs(dataset, cache, workers), expected, strict=True):
            assert torch.equal(pixels, plain)
    kept = len(cache) if kind == "ram" else len(list((tmp_path / "cache").glob("??/*")))
    assert len(dataset) <= kept <= 2 * len(dataset)  # in full and reduced, in two epochs that crop differently


@pytest.mark.parametrize("kind", KINDS)
def test_workers_share_what_others_have_decoded(dataset, kind, tmp_path, monkeypatch):
    cache = make(kind, tmp_path)
    expected = epochs(dataset, cache, workers=2)
    monkeypatch.setattr(Picture, "_decode", lambda *args: pytest.fail("is in the cache"))
    for pixels, plain in zip(epochs(dataset, cache), expected, strict=True):
        assert torch.equal(pixels, plain)


def test_spawned_processes_share_a_cache(tmp_path):
    caches, context = [make(kind, tmp_path, MB) for kind in KINDS], multiprocessing.get_context("spawn")
    for cache in caches:
        assert cache.put(b"k" * 16, Kept(np.ones((5, 7, 3), np.uint8), 1)) and cache.get(b"x" * 16) is None
    process = context.Process(target=copy_picture, args=(caches, b"k" * 16, b"l" * 16))
    process.start()
    process.join()
    for cache in caches:
        kept = cache.get(b"l" * 16)
        assert kept is not None and kept.pixels.shape == (5, 7, 3) and kept.pixels.min() == 1 and kept.flags == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_changes_is_another_picture(kind, tmp_path):
    cache, path = make(kind, tmp_path / "cache"), tmp_path / "a.jpg"
    rows = [{"image": str(path), "width": 300, "height": 200}]
    for seed in (1, 2):
        os.utime(write_picture(path, seed), (10**9, 10**9))  # nothing tells but its content
        for row in rows:
            assert np.array_equal(np.asarray(Picture(row, cache=cache)), np.asarray(decode_image(row)))
    with pytest.raises(DetectionDataError, match=r"a\.jpg: the image is 300x200 pixels .* say 299x200"):
        Picture({**rows[0], "width": 299}, cache=cache).load()


@pytest.mark.parametrize("kind", KINDS)
def test_the_limit_holds_and_what_is_over_it_is_decoded(dataset, kind, tmp_path):
    limit = 5 * (300 * 200 * 3 + 64)
    cache = make(kind, tmp_path, limit)
    for pixels, plain in zip(epochs(dataset, cache, 2, side=192), epochs(dataset, side=192), strict=True):
        assert torch.equal(pixels, plain)
    if kind == "ram":
        assert len(cache) == 5
    else:
        assert 0 < sum(path.stat().st_size for path in tmp_path.glob("??/*")) <= limit


def test_files_of_other_runs_make_room_and_are_served(tmp_path):
    first, pixels = DiskCache(tmp_path, MB), np.zeros((100, 1000, 3), np.uint8)
    for number in range(3):
        assert first.put(bytes([number] * 16), Kept(pixels, 0))
    assert not first.put(b"x" * 16, Kept(pixels, 0)), "its own are not replaced"
    for number, path in enumerate(sorted(tmp_path.glob("??/*"))):
        os.utime(path, (time.time() - 100 + number,) * 2)
    second = DiskCache(tmp_path, MB)
    assert second.get(b"\0" * 16) is not None, "used by this run"
    assert second.put(b"y" * 16, Kept(pixels, 0))
    assert second.get(bytes([1] * 16)) is None and second.get(bytes([2] * 16)) is not None


@pytest.mark.parametrize("damage", [b"", b"RFDETRP1", None])
def test_a_damaged_file_is_not_served(damage, tmp_path):
    cache = DiskCache(tmp_path, MB)
    cache.put(b"k" * 16, Kept(np.full((9, 11, 3), 7, np.uint8), 0))
    (path,) = tmp_path.glob("??/*")
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes(40) + data[140:] if damage is None else damage)
    assert cache.get(b"k" * 16) is None
    path.write_bytes(data)
    assert cache.get(b"k" * 16) is not None


def test_a_full_disk_names_the_remedy(dataset, tmp_path, monkeypatch):
    cache = DiskCache(tmp_path, 64 * MB)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(picture_cache.os, "replace", full)
    with pytest.raises(DetectionDataError, match=r"the disk is full.*lower cache_images_gb.*cache_images_dir.*none"):
        epochs(dataset, cache)
    assert not list(tmp_path.glob("??/*")), "nothing half is left"
    (tmp_path / "file").write_text("")
    with pytest.raises(DetectionDataError, match="file: cannot be written"):
        DiskCache(tmp_path / "file", MB)


def test_a_run_takes_its_cache_from_the_arguments(dataset, tmp_path, monkeypatch, caplog):
    options = {"cache_images": "disk", "cache_images_dir": str(tmp_path / "cache"), "eval_strategy": "no"}
    trainer = RFDETRTrainer(tiny_model(), quick_arguments(tmp_path / "run", **options), dataset)
    loader = trainer.get_train_dataloader()
    assert loader.dataset.cache is trainer.get_train_dataloader().dataset.cache
    next(iter(loader))
    assert list((tmp_path / "cache").glob("??/*"))
    options = {"cache_images": "ram", "cache_images_gb": 0.001, "eval_strategy": "no"}
    assert RFDETRTrainer(tiny_model(), quick_arguments(tmp_path / "run", **options), dataset).get_train_dataloader()
    assert any("cache_images_gb=0.001 keeps 50% of them" in message for message in caplog.messages), caplog.messages
    monkeypatch.setattr("rfdetr_hf.training.loaders.free_memory", lambda: 1000)
    options["cache_images_gb"] = 0.002
    with pytest.raises(ValueError, match="cache_images=ram needs .* lower cache_images_gb .*disk or none"):
        RFDETRTrainer(tiny_model(), quick_arguments(tmp_path / "run", **options), dataset).get_train_dataloader()


def test_pictures_of_pillow_are_not_kept():
    cache = MemoryCache(MB)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "PNG")
    assert decode_image({"image": Image.open(buffer)}).size == (8, 6) and len(cache) == 0
