"""What masks cost in the training transform, beside masks of the whole image that are resized with it.

    python benchmarks/masks.py --data /path/to/coco128/data_seg.yaml --label-dir labels_seg

Without --data, polygons are synthetic. All ways draw the same crops, flips and sizes; pixels are left out, so that the
numbers are those of the objects alone. Ways:

* ours / 4: polygons are moved and drawn once, at a quarter of the size of the model's input;
* ours / 2: the same at half of it;
* ours / 1: the same at the size of the input, which is what an augmentation sees;
* whole: each object is drawn at the size of its image, cropped, resized to the input (nearest) and mirrored.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from datasets import Dataset
from pycocotools import mask as mask_utils
from torch.nn import functional as F

from rfdetr_hf.data.masks import mask_column
from rfdetr_hf.data.pipeline.loader import DetectionDataset
from rfdetr_hf.data.pipeline.transforms import build_train_transform
from rfdetr_hf.data.pipeline.view import Sample, View
from rfdetr_hf.data.sources import load_detection_dataset


def synthetic(count: int, width: int, height: int, objects: int, corners: int) -> list[Sample]:
    """Star-shaped outlines of random size."""
    rng = np.random.default_rng(0)
    samples = []
    for index in range(count):
        angle = np.sort(rng.uniform(0, 2 * np.pi, (objects, corners)), axis=1)
        radius = rng.uniform(8, 0.3 * height, (objects, 1)) * rng.uniform(0.5, 1, (objects, corners))
        centre = rng.uniform(0.2, 0.8, (objects, 1, 2)) * (width, height)
        points = centre + radius[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        points = points.clip(0, (width, height))
        target = {
            "boxes": np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1).astype(np.float32),
            "class_labels": np.zeros(objects, np.int64),
            "area": np.ones(objects, np.float32),
            "iscrowd": np.zeros(objects, bool),
            "segmentation": mask_column([[p.ravel().tolist()] for p in points], height, width),
        }
        samples.append(Sample(None, target, index, (height, width)))
    return samples


def real(dataset: Dataset) -> list[Sample]:
    """The objects of a data set."""
    rows = DetectionDataset(dataset, lambda sample, rng: sample, train=True)
    return [rows[(0, index, index)] for index in range(len(dataset))]


def ours(ratio: int) -> Callable[[Sample, View], np.ndarray]:
    def draw(sample: Sample, view: View) -> np.ndarray:
        size = (-(-view.height // ratio), -(-view.width // ratio))
        return view.map_objects(sample.target, mask_size=size)["masks"]

    return draw


def whole(sample: Sample, view: View) -> np.ndarray:
    masks = [
        mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(mask, *sample.orig_size)))
        if isinstance(mask, list)
        else mask_utils.decode(mask)
        for mask in sample.target["segmentation"]
    ]
    if not masks:
        return np.zeros((0, view.height, view.width), bool)
    cut = torch.from_numpy(np.stack(masks))[:, view.top : view.bottom, view.left : view.right]
    cut = cut[cut.flatten(1).bool().any(dim=1)]
    if not len(cut):
        return np.zeros((0, view.height, view.width), bool)
    sized = F.interpolate(cut[None], size=(view.height, view.width), mode="nearest")[0].bool()
    return (sized.flip(-1) if view.flip else sized).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a data set with masks; synthetic outlines without it")
    parser.add_argument("--label-dir", help="as for load_detection_dataset")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--image-size", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--corners", type=int, default=30)
    parser.add_argument("--size", type=int, default=432, help="side of the model's input")
    parser.add_argument("--runs", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.data:
        samples = real(load_detection_dataset(args.data, label_dir=args.label_dir, task="segmentation")["train"])
    else:
        samples = synthetic(args.images, *args.image_size, args.objects, args.corners)
    transform = build_train_transform(args.size, multi_scale="off")
    views = [transform.draw_view(*sample.orig_size, np.random.default_rng(i)) for i, sample in enumerate(samples)]
    ways = {"ours / 4": ours(4), "ours / 2": ours(2), "ours / 1": ours(1), "whole": whole}
    best = dict.fromkeys(ways, float("inf"))
    size = dict.fromkeys(ways, 0)
    for _ in range(args.runs):
        for name, draw in ways.items():
            started = time.perf_counter()
            size[name] = sum(draw(sample, view).nbytes for sample, view in zip(samples, views, strict=True))
            best[name] = min(best[name], time.perf_counter() - started)
    count = sum(len(sample.target["boxes"]) for sample in samples) / len(samples)
    print(f"{len(samples)} images, {count:.1f} objects each, to {args.size} x {args.size}")
    for name in ways:
        per_image = 1e3 * best[name] / len(samples)
        print(f"{name:10} {per_image:7.2f} ms/image  {size[name] / len(samples) / 2**20:7.3f} MiB/image in the batch")


if __name__ == "__main__":
    main()
