import gc
import io
import itertools
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

from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.pipeline.loader import (
    DetectionDataset,
    LoaderOptions,
    build_eval_dataloader,
    build_train_dataloader,
)
from rfdetr_hf.data.pipeline.order import EpochBatchSampler, EvalBatchSampler
from rfdetr_hf.data.pipeline.transforms import build_eval_transform, build_train_transform
from rfdetr_hf.data.schema import detection_features
from rfdetr_hf.models.image_processing_rfdetr import RFDETRImageProcessor


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


def windows(num_samples, batch_size, accumulation, world_size, **options):
    """The set of keys of each optimizer step."""
    ranks = [
        list(EpochBatchSampler(num_samples, batch_size, accumulation=accumulation, rank=rank, world_size=world_size,
                               **options))
        for rank in range(world_size)
    ]  # fmt: skip
    steps = range(0, len(ranks[0]), accumulation)
    return [sorted(itertools.chain(*(key for r in ranks for key in r[i : i + accumulation]))) for i in steps]


@pytest.mark.parametrize("num_samples", [7, 37, 100, 104])
@pytest.mark.parametrize("shuffle", [True, False])
def test_windows_do_not_depend_on_how_they_are_split(num_samples, shuffle):
    splits = [(8, 1, 1), (4, 2, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8), (1, 4, 2), (4, 1, 2)]
    expected, *others = [windows(num_samples, *split, seed=3, epoch=2, shuffle=shuffle) for split in splits]
    assert all(other == expected for other in others)
    assert all(len({position for _, position, _ in window}) == 8 for window in expected)
    positions = [position for window in expected for _, position, _ in window]
    assert sorted(positions) == list(range(8 * len(expected)))


@pytest.mark.parametrize(
    ("num_samples", "expected"), [(1, 5), (39, 5), (40, 5), (41, 6), (100, 13), (104, 13), (105, 14)]
)
def test_whole_windows_and_at_least_five(num_samples, expected):
    sampler = EpochBatchSampler(num_samples, 2, accumulation=2, world_size=2, rank=1)
    assert len(list(sampler)) == len(sampler) == 2 * expected


def indices(num_samples, epoch, **options):
    keys = itertools.chain(*EpochBatchSampler(num_samples, 8, seed=1, epoch=epoch, **options))
    return [index for _, _, index in keys]


def test_every_image_comes_once_and_the_fill_is_drawn_anew():
    epochs = [indices(100, epoch) for epoch in range(3)]
    for order in epochs:
        assert sorted(order[:100]) == list(range(100))
        assert len(order) == 104 and len(set(order[100:])) == 4
    assert epochs[0] != epochs[1]
    assert len({tuple(sorted(order[100:])) for order in epochs}) == 3
    assert indices(100, 0, shuffle=False) == [*range(100), 0, 1, 2, 3]


def test_small_sets_are_drawn_with_replacement():
    order = indices(39, 0)
    assert len(order) == 40 and set(order) <= set(range(39))
    assert max(order.count(index) for index in order) > 2
    assert sorted(indices(40, 0)) == list(range(40))
    assert indices(3, 0, shuffle=False)[:7] == [0, 1, 2, 0, 1, 2, 0]


def test_another_split_of_the_window_goes_on_with_the_same_samples():
    sampler = EpochBatchSampler(100, 4, accumulation=2, seed=1, epoch=3)
    resumed = [EpochBatchSampler(100, 2, accumulation=2, seed=1, rank=rank, world_size=2) for rank in range(2)]
    for other in resumed:
        other.set_epoch(3, start_batch=6)
    keys = sorted(itertools.chain(*itertools.chain(*resumed)))
    assert keys == sorted(itertools.chain(*list(sampler)[6:]))


@pytest.mark.parametrize("options", [{"num_samples": 0}, {"batch_size": 0}, {"accumulation": 0}, {"rank": 2}])
def test_impossible_splits_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        EpochBatchSampler(**{"num_samples": 9, "batch_size": 1, "world_size": 2, **options})


@pytest.mark.parametrize("num_samples", [0, 1, 5, 11, 12])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_every_image_once(num_samples, world_size):
    samplers = [EvalBatchSampler(num_samples, 2, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [len(list(sampler)) for sampler in samplers] == [len(sampler) for sampler in samplers]
    keys = list(itertools.chain(*itertools.chain(*samplers)))
    assert sorted(index for _, _, index in keys) == list(range(num_samples))
    assert all(len(batch) <= 2 for sampler in samplers for batch in sampler)


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
