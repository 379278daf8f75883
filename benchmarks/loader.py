"""Images per second of the training loader, beside the pipeline that most fine-tuning scripts have.

    python benchmarks/loader.py --image-size 640 480 --size 544 --workers 0 1 2

The images are synthetic JPEG files, encoded once and held in memory. Ways to load them:

* plain: PIL decodes, resizes, mirrors; NumPy scales and normalises to float; one dict of tensors per image, in a list.
* ours, same work: resize and mirror only, as plain does.
* ours: the whole training recipe, scale jitter included.
* ours + prepare: the same, and the batch made float and normalised by `prepare_pixels` on this CPU, where the others'
  batches would go to the device as they are.

Runs of the ways take turns and the fastest run of each counts, so that a disturbance of the machine hits no way alone.
"""

import argparse
import io
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from torch.utils.data import DataLoader

from rfdetr_hf.data.pipeline.loader import LoaderOptions, build_train_dataloader
from rfdetr_hf.data.pipeline.pixels import prepare_pixels
from rfdetr_hf.data.pipeline.transforms import build_train_transform
from rfdetr_hf.data.schema import detection_features

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_dataset(count: int, width: int, height: int, objects: int) -> Dataset:
    """Smooth shapes with sensor-like noise, whose files are about as large as photographs of the size."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        pixels = (pixels + rng.integers(-8, 9, pixels.shape)).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        corners = rng.uniform(0, 0.5, (objects, 4)) * (width, height, width, height)
        rows.append(
            {
                "image": {"bytes": buffer.getvalue(), "path": None},
                "image_id": index,
                "width": width,
                "height": height,
                "file_name": f"{index}.jpg",
                "objects": {
                    "id": list(range(objects)),
                    "bbox": (corners + 1).tolist(),
                    "category": rng.integers(0, 3, objects).tolist(),
                    "area": corners[:, 2:].prod(axis=1).tolist(),
                    "iscrowd": [False] * objects,
                },
            }
        )
    return Dataset.from_list(rows, features=detection_features(["a", "b", "c"]))


class PlainDataset(torch.utils.data.Dataset):
    """The common way: everything per image, in floats, before the batch is made."""

    def __init__(self, dataset: Dataset, size: int) -> None:
        self.dataset = dataset.cast_column("image", ImageFeature())
        self.size = size

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.dataset[index]
        image, size = row["image"].convert("RGB"), self.size
        boxes = np.array(row["objects"]["bbox"], np.float32) / (image.width, image.height, image.width, image.height)
        boxes[:, :2] += boxes[:, 2:] / 2
        pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), np.float32) / 255
        if np.random.rand() < 0.5:
            pixels, boxes[:, 0] = pixels[:, ::-1], 1 - boxes[:, 0]
        pixels = ((pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)).transpose(2, 0, 1)
        labels = {
            "class_labels": torch.tensor(row["objects"]["category"]),
            "boxes": torch.from_numpy(boxes.astype(np.float32)),
            "area": torch.tensor(row["objects"]["area"]),
            "iscrowd": torch.tensor(row["objects"]["iscrowd"]),
            "image_id": torch.tensor(row["image_id"]),
            "orig_size": torch.tensor([row["height"], row["width"]]),
            "size": torch.tensor([size, size]),
        }
        return {"pixel_values": torch.from_numpy(np.ascontiguousarray(pixels)), "labels": labels}


def plain_collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    pixels = torch.stack([sample["pixel_values"] for sample in samples])
    return {"pixel_values": pixels, "labels": [sample["labels"] for sample in samples]}


def prepared(batches: Iterable[dict[str, Any]]) -> Iterable[Any]:
    for batch in batches:
        yield prepare_pixels(batch["pixel_values"], batch.get("pixel_mask"), MEAN, STD)


def ways(dataset: Dataset, size: int, batch_size: int, workers: int) -> dict[str, Callable[[], Iterable[Any]]]:
    """For each way a function that starts one epoch."""

    def ours(scale_jitter: bool) -> DataLoader:
        transform = build_train_transform(size, multi_scale="off", scale_jitter=scale_jitter)
        return build_train_dataloader(dataset, transform, LoaderOptions(batch_size=batch_size, num_workers=workers))

    plain = DataLoader(
        PlainDataset(dataset, size),
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        collate_fn=plain_collate,
        persistent_workers=workers > 0,
    )
    same, full = ours(False), ours(True)
    return {
        "plain": lambda: plain,
        "ours, same work": lambda: same,
        "ours": lambda: full,
        "ours + prepare": lambda: prepared(full),
    }


def images_per_second(start: Callable[[], Iterable[Any]], images: int) -> float:
    started = time.perf_counter()
    for _ in start():
        pass
    return images / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--image-size", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--size", type=int, default=544, help="side that the images are resized to")
    parser.add_argument("--objects", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--runs", type=int, default=4)
    args = parser.parse_args()
    if args.images % args.batch_size or args.images < 5 * args.batch_size:
        parser.error("--images must be a multiple of --batch-size and at least five times as large")
    torch.set_num_threads(1)
    dataset = make_dataset(args.images, *args.image_size, args.objects)
    print(f"{args.images} images of {args.image_size}, resized to {args.size}, batches of {args.batch_size}")
    for workers in args.workers:
        starts = ways(dataset, args.size, args.batch_size, workers)
        best = dict.fromkeys(starts, 0.0)
        for run in range(args.runs + 1):
            for name, start in starts.items():
                speed = images_per_second(start, args.images)
                if run:  # the first starts the workers
                    best[name] = max(best[name], speed)
        for name, speed in best.items():
            print(f"workers {workers}  {name:16} {speed:8.1f} images/s  {speed / best['plain']:5.2f} x plain")


if __name__ == "__main__":
    main()
