"""Batches through the ring of a loader: the same as without it, each in its own memory, whatever becomes of workers."""

import copy
import io
import multiprocessing
import pickle
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from rfdetr_hf.data.pipeline import ring as rings
from rfdetr_hf.data.pipeline.loader import LoaderOptions, build_eval_dataloader
from rfdetr_hf.data.pipeline.view import Sample
from rfdetr_hf.data.schema import detection_features

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or multiprocessing.get_start_method() != "fork", reason="a ring needs forked workers"
)
COUNT = 24


def rows():
    rng, files = np.random.default_rng(0), [io.BytesIO() for _ in range(COUNT)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(file, "PNG")
    objects = {"id": [], "bbox": [], "category": [], "area": [], "iscrowd": []}
    made = [
        {"image": {"bytes": file.getvalue(), "path": None}, "image_id": i, "width": 12, "height": 12,
         "file_name": f"{i}.png", "objects": objects} for i, file in enumerate(files)
    ]  # fmt: skip
    return Dataset.from_list(made, features=detection_features(["a"]))


def as_tensor(sample: Sample, rng: np.random.Generator) -> Sample:
    pixels = torch.from_numpy(np.array(sample.image)).permute(2, 0, 1)
    return sample.with_image(pixels[:, : 12 - sample.image_id % 2], sample.target)  # every other one is padded


def loader(workers=2, **options):
    return build_eval_dataloader(rows(), as_tensor, LoaderOptions(3, num_workers=workers, **options))


def pixels(batches):
    return [batch["pixel_values"] for batch in batches]


@pytest.mark.parametrize("persistent", [False, True])
def test_batches_are_those_of_this_process_and_stay_what_they_are(persistent):
    expected = pixels(loader(workers=0))
    through = loader(persistent_workers=persistent)
    kept = [tensor for _ in range(4) for tensor in pixels(through)]  # more than there are slots
    for tensor, right in zip(kept, expected * 4, strict=True):
        assert torch.equal(tensor, right) and not tensor.is_shared()


def test_two_iterations_at_once_and_abandoned_ones_have_slots_of_their_own():
    expected = pixels(loader(workers=0))
    through = loader(persistent_workers=False)
    for _ in range(5):
        abandoned = iter(through)
        next(abandoned)
    pairs = list(zip(through, through, through, strict=True))
    for right, each in zip(expected, pairs, strict=True):
        assert all(torch.equal(batch["pixel_values"], right) for batch in each)


def test_batches_that_find_no_slot_travel_as_before(monkeypatch):
    monkeypatch.setattr(rings, "_SLOT_BYTES", 64)
    for tensor, right in zip(pixels(loader()), pixels(loader(workers=0)), strict=True):
        assert torch.equal(tensor, right) and tensor.is_shared()


def test_a_slot_with_another_batch_is_an_error(monkeypatch):
    receive = rings.BatchRing.read
    monkeypatch.setattr(rings.BatchRing, "read", lambda ring, slot, batch, *rest: receive(ring, slot, batch + 1, *rest))
    with pytest.raises(RuntimeError, match="slot .* holds batch"):
        pixels(loader())


def spoil(batch):
    """What a collate function of the user's may do."""
    pixels = batch["pixel_values"]
    if pixels.shape[0] % 2:
        pixels[:, 0] = 7  # in place
        batch["upper"] = pixels[:, :, :6]
        batch["again"] = pixels
    batch["turned"] = pixels.flip(0) if pixels.dtype == torch.uint8 else None
    return batch


def test_a_collate_function_of_the_users_gets_a_tensor_and_sends_what_it_makes():
    found = {}
    for workers in (0, 2):
        through = loader(workers=workers)
        own, kept = through.collate_fn, []

        def collate(samples, own=own, kept=kept):
            kept.append(own(samples))
            return {**spoil(kept[-1]), "first": kept[0]["pixel_values"]}

        through.collate_fn = collate
        found[workers] = list(through)
    for name in ("pixel_values", "upper", "again", "turned"):
        assert all(torch.equal(here[name], there[name]) for here, there in zip(found[0], found[2], strict=True)), name
    # A tensor that is kept in a worker stays what it is: each worker's first batch, whatever slots were used since.
    for number, batch in enumerate(found[2]):
        assert torch.equal(batch["first"], found[0][number % 2]["pixel_values"])


CHANGES = {
    "data": lambda tensor: setattr(tensor, "data", tensor.data.flip(0)),
    "transpose": lambda tensor: tensor.transpose_(0, 1),
    "set": lambda tensor: tensor.set_(tensor.flip(1)),
    "unsqueeze": lambda tensor: tensor.unsqueeze_(0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_tensor_that_was_given_other_memory_or_another_shape_travels_as_it_is(change):
    found = []
    for workers in (0, 1):
        through = loader(workers=workers)
        own = through.collate_fn

        def collate(samples, own=own):
            batch = own(samples)
            change(batch["pixel_values"])
            return batch

        through.collate_fn = collate
        found.append(pixels(through))
    assert all(torch.equal(here, there) for here, there in zip(*found, strict=True))


def test_a_place_is_free_when_its_worker_has_ended():
    through = loader(persistent_workers=False)
    for _ in range(5):
        assert not any(tensor.is_shared() for tensor in pixels(through))


def test_a_copy_of_a_collator_has_no_ring_so_that_workers_may_be_spawned():
    own = loader(workers=1).collate_fn
    assert own.ring is not None
    assert copy.deepcopy(own).ring is None and pickle.loads(pickle.dumps(own)).ring is None
