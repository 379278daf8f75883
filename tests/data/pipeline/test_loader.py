import gc
import io
import pickle
import random
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from rfdetr_hf import RFDETRImageProcessor
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.pipeline.loader import (
    DetectionDataset,
    LoaderOptions,
    build_eval_dataloader,
    build_train_dataloader,
)
from rfdetr_hf.data.pipeline.transforms import build_eval_transform, build_train_transform
from rfdetr_hf.data.schema import detection_features


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def make_dataset(size=30, broken=None):
    rng = np.random.default_rng(0)
    rows = []
    for index in range(size):
        image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((80, 60))
        data = jpeg(image)
        rows.append(
            {
                "image": {"bytes": data[: len(data) // 2] if index == broken else data, "path": None},
                "image_id": 100 + index,
                "width": 80,
                "height": 60,
                "file_name": f"{index}.jpg",
                "objects": {
                    "id": [2 * index, 2 * index + 1],
                    "bbox": [[10, 10, 30, 20], [0, 0, 80, 60]],
                    "category": [index % 2, 0],
                    "area": [600, 100],
                    "iscrowd": [False, index % 3 == 0],
                },
            }
        )
    return Dataset.from_list(rows, features=detection_features(["a", "b"]))


@pytest.fixture(scope="module")
def dataset():
    return make_dataset()


def noisy(image, target):
    """An augmentation that draws from every global generator."""
    pixels = np.asarray(image).astype(np.int64)
    noise = np.random.randint(0, 9, pixels.shape) + random.randint(0, 9) + int(torch.randint(9, ()))
    return (pixels + noise).clip(0, 255).astype(np.uint8), target


def train_loader(dataset, num_workers=0, **options):
    transform = build_train_transform(48, [32, 48], multi_scale="per_sample", augmentation=noisy)
    options = {"batch_size": 2, "seed": 5, "size_divisor": 16, **options}
    return build_train_dataloader(dataset, transform, LoaderOptions(num_workers=num_workers, **options))


def as_bytes(batch):
    parts = [batch["pixel_values"], batch["labels"].fields["boxes"], batch["labels"].fields["image_id"]]
    if "pixel_mask" in batch:
        parts.append(batch["pixel_mask"])
    return b"".join(part.numpy().tobytes() for part in parts)


# ------------------------------------------------------------------------------------------------------- samples


def test_crowd_objects_are_no_training_targets(dataset):
    def same(sample, rng):
        return sample

    crowd = DetectionDataset(dataset, same, train=False)[0, 0, 3]
    assert crowd.target["iscrowd"].tolist() == [False, True]
    training = DetectionDataset(dataset, same, train=True)[0, 0, 3]
    assert training.target["boxes"].tolist() == [[10, 10, 40, 30]]
    assert {name: len(values) for name, values in training.target.items()} == {
        "boxes": 1, "class_labels": 1, "area": 1, "iscrowd": 1,
    }  # fmt: skip
    assert (training.image_id, training.orig_size) == (103, (60, 80))
    assert DetectionDataset(dataset, same, train=True)[0, 0, 4].target["class_labels"].tolist() == [0, 0]


def test_decoded_datasets_work_alike(dataset):
    from datasets import Image as ImageFeature

    transform = build_train_transform(32, multi_scale="off")
    decoded = dataset.cast_column("image", ImageFeature())
    one, other = (DetectionDataset(data, transform, train=True)[0, 1, 2] for data in (dataset, decoded))
    assert torch.equal(one.image, other.image)


def test_draws_depend_on_seed_epoch_and_position(dataset):
    def draw(seed, key):
        return DetectionDataset(dataset, lambda sample, rng: rng.random(), seed, train=True)[key]

    assert draw(1, (2, 3, 4)) == draw(1, (2, 3, 5))
    assert len({draw(1, (2, 3, 4)), draw(0, (2, 3, 4)), draw(1, (0, 3, 4)), draw(1, (2, 0, 4))}) == 4


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_in_a_worker_name_the_image(dataset, num_workers):
    def fail(image, target):
        raise KeyError("brightness")

    transform = build_train_transform(32, multi_scale="off", augmentation=fail)
    loader = build_train_dataloader(
        dataset, transform, LoaderOptions(batch_size=4, num_workers=num_workers, shuffle=False)
    )
    with pytest.raises(RuntimeError, match=r"image 100 \(file 0.jpg, row 0.*KeyError.*brightness"):
        next(iter(loader))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_truncated_file_is_named(num_workers):
    transform = build_train_transform(32, multi_scale="off")
    loader = build_train_dataloader(
        make_dataset(8, broken=2), transform, LoaderOptions(batch_size=4, num_workers=num_workers, shuffle=False)
    )
    with pytest.raises(DetectionDataError, match="2.jpg.*cannot be decoded"):
        next(iter(loader))


# --------------------------------------------------------------------------------------------------- determinism


def test_workers_and_global_generators_change_nothing(dataset):
    plain = [as_bytes(batch) for batch in train_loader(dataset)]
    assert len(plain) == 15 and len(set(plain)) == 15
    torch.manual_seed(9), np.random.seed(9), random.seed(9)
    assert [as_bytes(batch) for batch in train_loader(dataset, num_workers=2)] == plain
    assert [as_bytes(batch) for batch in train_loader(dataset, seed=6)] != plain


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_within_an_epoch_gives_the_same_bytes(dataset, num_workers):
    loader = train_loader(dataset, num_workers)
    whole = []
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)
        whole += [as_bytes(batch) for batch in loader]
    assert whole[:15] != whole[15:]
    resumed = train_loader(dataset, num_workers)
    resumed.batch_sampler.set_epoch(0, start_batch=11)
    rest = [as_bytes(batch) for batch in resumed]
    resumed.batch_sampler.set_epoch(1)
    assert rest + [as_bytes(batch) for batch in resumed] == whole[11:]


def test_an_abandoned_epoch_leaves_nothing_in_persistent_workers(dataset):
    loader = train_loader(dataset, num_workers=2)
    next(iter(loader))
    loader.batch_sampler.set_epoch(1)
    expected = train_loader(dataset)
    expected.batch_sampler.set_epoch(1)
    assert [as_bytes(batch) for batch in loader] == [as_bytes(batch) for batch in expected]


def test_loading_draws_nothing_from_global_generators(dataset):
    def states():
        return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()

    for num_workers in (0, 1):
        before = states()
        next(iter(train_loader(dataset, num_workers)))
        assert states() == before


# ------------------------------------------------------------------------------------------------------ samplers


# ---------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_sees_the_pixels_of_the_predict_path(dataset, num_workers):
    processor = RFDETRImageProcessor(size={"height": 48, "width": 64})
    seen = []
    for rank in range(2):
        loader = build_eval_dataloader(
            dataset,
            build_eval_transform(processor),
            LoaderOptions(batch_size=4, rank=rank, world_size=2, num_workers=num_workers),
        )
        for batch in loader:
            for pixels, target in zip(batch["pixel_values"], batch["labels"].unpack(), strict=True):
                row = target["image_id"].item() - 100
                image = Image.open(io.BytesIO(dataset[row]["image"]["bytes"]))
                assert torch.equal(pixels, processor(images=image)["pixel_values"][0])
                assert target["orig_size"].tolist() == [60, 80] and target["size"].tolist() == [48, 64]
                assert len(target["boxes"]) == 2
                seen.append(row)
    assert sorted(seen) == list(range(30))


def test_aspect_preserving_evaluation_pads_to_the_divisor(dataset):
    transform = build_eval_transform(RFDETRImageProcessor(size={"shortest_edge": 48}, size_divisor=32))
    batch = next(
        iter(build_eval_dataloader(dataset, transform, LoaderOptions(batch_size=2, size_divisor=32, num_workers=0)))
    )
    assert batch["pixel_values"].shape == (2, 3, 64, 64)
    assert batch["pixel_mask"].sum().item() == 2 * 48 * 64
    assert batch["labels"].fields["boxes"][1].tolist() == [0.5, 0.5, 1, 1]


def test_exif_orientation_reaches_training_and_evaluation():
    upright = Image.new("RGB", (60, 40))
    upright.paste("white", (0, 0, 20, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left of how it is shown
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    row = make_dataset(1)[0]
    row |= {"image": {"bytes": jpeg(stored, exif=exif), "path": None}, "width": 60, "height": 40}
    row["objects"] |= {"bbox": [[0, 0, 20, 40], [0, 0, 1, 1]]}
    turned = Dataset.from_list([row], features=detection_features(["a", "b"]))
    plain = build_train_transform(60, multi_scale="off", scale_jitter=False, horizontal_flip=0, square=False)
    sample = DetectionDataset(turned, plain, train=False)[0, 0, 0]
    assert sample.image[:, :, :18].min() > 200 and sample.image[:, :, 40:].max() < 50
    evaluation = build_eval_transform(RFDETRImageProcessor(size={"height": 40, "width": 60}))
    pixels = DetectionDataset(turned, evaluation, train=False)[0, 0, 0].image
    assert pixels[:, :, :18].min() > 1 and pixels[:, :, 22:].max() < -1


def test_workers_that_are_no_forks_share_one_table(monkeypatch):
    rows = make_dataset(6).select([i % 6 for i in range(3000)])
    transform = build_train_transform(64, multi_scale="off")
    plain = DetectionDataset(rows, transform, 3, train=True)
    monkeypatch.setattr("rfdetr_hf.data.pipeline.loader.multiprocessing.get_start_method", lambda: "spawn")
    loader = build_train_dataloader(rows, transform, LoaderOptions(batch_size=4, seed=3))
    samples: Any = loader.dataset
    message = ForkingPickler.dumps(samples)
    assert len(message) < 20_000 < len(ForkingPickler.dumps(plain))
    theirs = pickle.loads(message)
    assert theirs.dataset.cache_files and theirs.dataset.features == rows.features
    for key in ((0, 0, 5), (1, 7, 2999)):
        mine, others = plain[key], theirs[key]
        assert torch.equal(mine.image, others.image) and np.array_equal(mine.target["boxes"], others.target["boxes"])
    folder = Path(samples.folder.name)
    del theirs
    assert folder.is_dir()
    del loader, samples
    gc.collect()
    assert not folder.exists()
