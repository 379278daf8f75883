"""Images per second of the training loader, beside those of rfdetr and of transformers' example, to a collated batch.

    python benchmarks/dataloader.py --data DATA/bccd DATA/coco128 large --sizes 384 704 --workers 1 2 --json out.json

`large` are made-up JPEG files of 2560 x 1920. All ways load the same images at the same size and mirror half of them;
the filter is bilinear and antialiased everywhere, and the pixels of all ways, normalised, are compared before anything
is timed. `--jitter` adds the random crops of the recipe to ours and rfdetr's. The ways:

* pillow, simplejpeg: ours, by `image_decoder`; ram, disk: with `cache_images`, filled before. Batches are bytes, which
  the device normalises; "+ normalised" does it on this CPU, in the main process.
* rfdetr: the loader of its data module, packed targets and all, which decodes by simplejpeg where that is installed;
  "rfdetr, Pillow" without it.
* transformers: what its example of object detection does, without Albumentations: rows of `datasets`, one call of
  DetrImageProcessor for each image.

With `--workers 0` everything runs in this process and its processor time counts, which other jobs hardly disturb. A way
whose package is missing is left out. The ways take turns; the fastest run of each counts, so that a disturbance
of the machine hits no way alone. `--store` reads ours from shards on an S3 server of this machine too (needs
`moto[server]` and `s3fs`), from an empty cache. `--parts` says where the time of one image goes, in one process.
"""

import argparse
import contextlib
import importlib
import io
import json
import logging
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader

from rfdetr_hf import convert_dataset, load_detection_dataset
from rfdetr_hf.data.pipeline import loader as loading
from rfdetr_hf.data.pipeline import pixels as decoding
from rfdetr_hf.data.pipeline import view as viewing
from rfdetr_hf.data.pipeline.collate import DetectionCollator
from rfdetr_hf.data.pipeline.loader import LoaderOptions, build_train_dataloader
from rfdetr_hf.data.pipeline.picture_cache import DiskCache, MemoryCache
from rfdetr_hf.data.pipeline.pixels import decode_image, prepare_pixels
from rfdetr_hf.data.pipeline.row_reader import RowReader
from rfdetr_hf.data.pipeline.transforms import build_train_transform
from rfdetr_hf.data.schema import class_names, detection_features
from rfdetr_hf.training.host_memory import kept_memory

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 8
CACHE_BYTES = 4 << 30

Batches = Iterable[Any]
Ways = dict[str, Callable[[], Batches]]


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


def as_folder(dataset: Dataset, folder: Path) -> Dataset:
    """Write images and a COCO file for rfdetr, and return our rows with these files: all ways read the same ones."""
    (folder / "train").mkdir(parents=True)
    images, annotations, rows = [], [], []
    for number, row in enumerate(dataset):
        path = folder / "train" / f"{number}.jpg"
        image = row["image"]
        path.write_bytes(image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes())
        images.append({"id": number, "file_name": path.name, "width": row["width"], "height": row["height"]})
        objects = row["objects"]
        for box, label, area in zip(objects["bbox"], objects["category"], objects["area"], strict=True):
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": label, "bbox": box,
                                "area": area, "iscrowd": 0})  # fmt: skip
        rows.append({**row, "image": {"bytes": None, "path": str(path)}, "image_id": number})
    categories = [{"id": i, "name": name, "supercategory": "none"} for i, name in enumerate(class_names(dataset))]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "train" / "_annotations.coco.json").write_text(json.dumps(content))
    (folder / "valid").symlink_to(folder / "train")
    return Dataset.from_list(rows, features=dataset.features)


# ------------------------------------------------------------------------------------------------ the ways


def normalised(batches: Batches) -> Iterator[Any]:
    """Our batches, made float on this CPU, as in a training there."""
    for batch in batches:
        batch["pixel_values"] = prepare_pixels(batch["pixel_values"], batch.get("pixel_mask"), MEAN, STD)[0]
        yield batch


def our_loader(dataset: Any, size: int, workers: int, jitter: bool, flip: float, **options: Any) -> DataLoader:
    transform = build_train_transform(size, multi_scale="off", scale_jitter=jitter, horizontal_flip=flip)
    return build_train_dataloader(dataset, transform, LoaderOptions(BATCH, num_workers=workers, **options))


def our_ways(dataset: Dataset, size: int, workers: int, jitter: bool, folder: Path, flip: float = 0.5) -> Ways:
    """Ours, by decoder and cache."""
    disk = DiskCache(folder / "pictures", CACHE_BYTES)
    ram = MemoryCache(CACHE_BYTES)
    options: dict[str, dict[str, Any]] = {"pillow": {}, "ram": {"cache": ram}, "disk": {"cache": disk}}
    if installed("simplejpeg"):
        options["simplejpeg"] = {"image_decoder": "simplejpeg"}
    loaders = {name: our_loader(dataset, size, workers, jitter, flip, **each) for name, each in options.items()}
    ways: Ways = {name: lambda made=made: made for name, made in loaders.items()}
    return ways | {f"{name} + normalised": lambda made=made: normalised(made) for name, made in loaders.items()}


def rfdetr_ways(folder: Path, size: int, workers: int, jitter: bool, flip: bool = True) -> Ways:
    """The training loader of rfdetr's data module."""
    from rfdetr.config import RFDETRNanoConfig, TrainConfig  # pyright: ignore[reportMissingImports]
    from rfdetr.datasets import io_utils  # pyright: ignore[reportMissingImports]
    from rfdetr.training.module_data import RFDETRDataModule  # pyright: ignore[reportMissingImports]

    model = RFDETRNanoConfig(resolution=size, pretrain_weights=None, device="cpu")
    train = TrainConfig(dataset_dir=str(folder), dataset_file="roboflow", multi_scale="off", expanded_scales=False,
                        scale_jitter=jitter, batch_size=BATCH, num_workers=workers, output_dir=str(folder / "out"),
                        aug_config=None if flip else {}, accelerator="cpu")  # fmt: skip
    ways: Ways = {}
    decoders = {"rfdetr": importlib.import_module("simplejpeg")} if installed("simplejpeg") else {}
    for name, decode in {**decoders, "rfdetr, Pillow": None}.items():
        module = RFDETRDataModule(model, train)
        module.setup("fit")
        made = module.train_dataloader()

        def start(made: DataLoader = made, decode: Any = decode) -> Batches:
            io_utils.simplejpeg = decode  # its workers are forked at the first iteration
            return made

        ways[name] = start
    return ways


def transformers_way(dataset: Dataset, size: int, workers: int, flip: float = 0.5) -> Ways:
    """The pipeline of transformers' example, whose Albumentations are a mirror here."""
    from transformers import DetrImageProcessor

    processor = DetrImageProcessor(size={"height": size, "width": size}, do_pad=False)

    def transform(rows: dict[str, list[Any]]) -> Any:
        images, annotations = [], []
        for image_id, row, objects in zip(rows["image_id"], rows["image"], rows["objects"], strict=True):
            image = np.array(decode_image({"image": row}))
            boxes = np.array(objects["bbox"], np.float64).reshape(-1, 4)
            if random.random() < flip:
                image = image[:, ::-1]
                boxes[:, 0] = image.shape[1] - boxes[:, 0] - boxes[:, 2]
            images.append(np.ascontiguousarray(image))
            annotations.append({
                "image_id": image_id,
                "annotations": [
                    {"image_id": image_id, "category_id": label, "iscrowd": 0, "area": area, "bbox": box}
                    for label, area, box in zip(objects["category"], objects["area"], boxes.tolist(), strict=True)
                ],
            })  # fmt: skip
        return processor(images=images, annotations=annotations, return_tensors="pt")

    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        pixels = torch.stack([sample["pixel_values"] for sample in samples])
        return {"pixel_values": pixels, "labels": [sample["labels"] for sample in samples]}

    made: Any = DataLoader(
        dataset.with_transform(transform),  # pyright: ignore[reportArgumentType]
        BATCH, shuffle=True, num_workers=workers, collate_fn=collate, persistent_workers=workers > 0, drop_last=True,
    )  # fmt: skip
    return {"transformers": lambda: made}


def all_ways(dataset: Dataset, folder: Path, size: int, workers: int, jitter: bool, flip: bool = True) -> Ways:
    """Every way whose packages are here."""
    ways = our_ways(dataset, size, workers, jitter, folder, 0.5 if flip else 0.0)
    if installed("rfdetr"):
        ways |= rfdetr_ways(folder, size, workers, jitter, flip)
    if installed("torchvision") and not jitter:
        ways |= transformers_way(dataset, size, workers, 0.5 if flip else 0.0)
    return ways


def installed(name: str) -> bool:
    """Whether a package is here."""
    with contextlib.suppress(PackageNotFoundError):
        return bool(version(name))
    return False


# ------------------------------------------------------------------------------------------------ measuring


def pixels_of(batch: Any) -> torch.Tensor:
    """(B, 3, H, W) of a batch of any way."""
    images = batch["pixel_values"] if isinstance(batch, dict) else batch[0]
    return images if isinstance(images, torch.Tensor) else images.tensors


def compare(dataset: Dataset, size: int) -> dict[str, float]:
    """Mean difference of an image from rfdetr's by Pillow, the largest of 40 images, in units of 1/255 of the range.

    Raises:
        RuntimeError: a way does not give each of the images once.
    """
    few = dataset.select(range(5 * BATCH))  # of fewer images, rfdetr draws some several times
    with tempfile.TemporaryDirectory() as other:
        rows = as_folder(few, Path(other) / "few")
        ways = {name: way for name, way in all_ways(rows, Path(other) / "few", size, 0, False, False).items()
                if "normalised" in name or name in ("rfdetr", "rfdetr, Pillow", "transformers")}  # fmt: skip
        found = {name: torch.cat([pixels_of(batch) for batch in way()]) for name, way in ways.items()}
    base = found["rfdetr, Pillow"] if "rfdetr, Pillow" in found else found["pillow + normalised"]
    thumbnails = {name: F.adaptive_avg_pool2d(images, 8).flatten(1) for name, images in found.items()}
    of_base = F.adaptive_avg_pool2d(base, 8).flatten(1)
    scale, differences = torch.tensor(STD)[:, None, None] * 255, {}
    for name, images in found.items():
        # The ways have orders of their own: images are told by what they look like.
        order = torch.cdist(of_base, thumbnails[name]).argmin(1)
        if len(images) != len(few) or len(order.unique()) != len(few):
            raise RuntimeError(f"{name} gives {len(images)} images, {len(order.unique())} of the {len(few)}")
        pairs = zip(base, images[order], strict=True)
        differences[name] = max(float(((first - second).abs() * scale).mean()) for first, second in pairs)
    return differences


def images_per_second(start: Callable[[], Batches], clock: Callable[[], float] = time.perf_counter) -> float:
    started, count = clock(), 0
    for batch in start():
        count += len(pixels_of(batch))
    return count / (clock() - started)


def measure(ways: Ways, runs: int, clock: Callable[[], float]) -> dict[str, float]:
    """The best of some runs of each way, in turns; a run before them starts the workers and fills the caches."""
    best = dict.fromkeys(ways, 0.0)
    with kept_memory(torch.device("cpu")):  # as our training on a CPU keeps it from its start to its end
        for run in range(runs + 1):
            for name, start in ways.items():
                speed = images_per_second(start, clock)
                best[name] = max(best[name], speed if run else 0.0)
    return best


def parts(dataset: Dataset, size: int, decoder: str) -> dict[str, float]:
    """Milliseconds of processor time of an image by what is done, in this process."""
    spent: dict[str, float] = {}
    inner: list[float] = [0.0]  # what the parts below have taken, by depth

    def timed(name: str, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            inner.append(0.0)
            started = time.process_time()
            try:
                return function(*args, **options)
            finally:
                wall = time.process_time() - started
                spent[name] = spent.get(name, 0.0) + wall - inner.pop()
                inner[-1] += wall

        return call

    places = [
        ("row of the table", RowReader, "__getitem__"), ("read the file", decoding, "_bytes"),
        ("read its header", decoding, "_open"), ("decode", decoding.Picture, "_decode"),
        ("crop and resize", viewing, "resample"), ("move objects", viewing.View, "map_objects"),
        ("boxes as arrays", loading.DetectionDataset, "_target"), ("collate", DetectionCollator, "__call__"),
    ]  # fmt: skip
    made = our_loader(dataset, size, 0, False, 0.5, image_decoder=decoder)
    images_per_second(lambda: made)
    before = [getattr(owner, name) for _, owner, name in places]
    for (words, owner, name), function in zip(places, before, strict=True):
        setattr(owner, name, timed(words, function))
    try:
        started = time.process_time()
        count = sum(len(pixels_of(batch)) for batch in made)
        wall = time.process_time() - started
    finally:
        for (_, owner, name), function in zip(places, before, strict=True):
            setattr(owner, name, function)
    spent["rest"] = wall - sum(spent.values())
    return {name: 1000 * seconds / count for name, seconds in spent.items()}


def store_speeds(dataset: Dataset, size: int, workers: int) -> dict[str, float]:
    """Images a second of ours from shards, on the disk and, from an empty cache, on an S3 server."""
    import boto3  # pyright: ignore[reportMissingImports]
    import moto.server  # pyright: ignore[reportMissingImports]

    found = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        shards = Path(folder) / "shards"
        convert_dataset({"train": dataset}, shards, "webdataset", 4)
        server = moto.server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        server.start()
        stack.callback(server.stop)
        address = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": address, "NO_PROXY": "127.0.0.1"}  # fmt: skip
        os.environ.update(keys)
        client = boto3.client("s3", endpoint_url=address, region_name="us-east-1")
        client.create_bucket(Bucket="data")
        for path in sorted(shards.rglob("*")):
            if path.is_file():
                client.upload_file(str(path), "data", f"shards/{path.relative_to(shards)}")
        cache = {"shard_cache": f"{folder}/cache"}
        for name, source in {"shards on disk": str(shards), "S3, empty cache": "s3://data/shards"}.items():
            split = load_detection_dataset(source, **cache)["train"]
            made = our_loader(split, size, workers, False, 0.5)
            found[name] = images_per_second(lambda made=made: made)
            found[f"{name.split(',')[0]}, second epoch"] = images_per_second(lambda made=made: made)
    return found


def open_data(name: str, images: int, folder: Path) -> Dataset:
    """The rows of a data set as files: JPEG pictures, a multiple of the batch, repeated where there are few."""
    if name == "large":
        rows = make_dataset(min(images, 40), 2560, 1920, 12)
    else:
        rows = load_detection_dataset(name)["train"]
        jpeg = [i for i, image in enumerate(rows["file_name"]) if str(image).lower().endswith((".jpg", ".jpeg"))]
        rows = rows.select(jpeg[: images // BATCH * BATCH])
    count = max(5 * BATCH, len(rows) // BATCH * BATCH)
    return as_folder(rows.select([i % len(rows) for i in range(count)]), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["large"], help="folders of data sets, or 'large'")
    parser.add_argument("--sizes", type=int, nargs="+", default=[384, 704], help="sides that the images are resized to")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--ways", nargs="+", help="these ways alone")
    parser.add_argument("--jitter", action="store_true", help="crop half of the images, as the recipe does")
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--store", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    packages = ["torch", "pillow", "simplejpeg", "rfdetr", "transformers", "torchvision"]
    facts = {name: version(name) for name in packages if installed(name)} | {"cores": os.cpu_count()}
    print(f"{facts}, Python {sys.version.split()[0]}, best of {args.runs}, batches of {BATCH}")
    found: list[dict[str, Any]] = []
    for name, size in [(name, size) for name in args.data for size in args.sizes]:
        with tempfile.TemporaryDirectory() as folder:
            dataset = open_data(name, args.images, Path(folder) / "data")
            row: dict[str, Any] = {"data": Path(name).name, "size": size, "images": len(dataset)}
            row["difference"] = compare(dataset, size)
            print(f"\n{row['data']}, {len(dataset)} images to {size}; mean difference in 1/255, the worst image:",
                  {way: round(value, 2) for way, value in row["difference"].items()})  # fmt: skip
            for workers in args.workers:
                ways = all_ways(dataset, Path(folder) / "data", size, workers, args.jitter)
                ways = {way: start for way, start in ways.items() if not args.ways or way in args.ways}
                best = row[f"{workers} workers"] = measure(
                    ways, args.runs, time.perf_counter if workers else time.process_time
                )
                for way, speed in best.items():
                    ratio = f"{speed / best['rfdetr']:5.2f} x rfdetr" if "rfdetr" in best else ""
                    print(f"  workers {workers}  {way:26} {speed:8.1f} images/s  {ratio}")
            if args.parts:
                for decoder in ("pillow", "simplejpeg") if installed("simplejpeg") else ("pillow",):
                    row[f"parts, {decoder}"] = spent = parts(dataset, size, decoder)
                    print(f"  {decoder}, ms: " + ", ".join(f"{part} {ms:.2f}" for part, ms in spent.items()))
            if args.store:
                row["store"] = store_speeds(dataset, size, max(args.workers))
                print("  " + ", ".join(f"{way} {speed:.0f} images/s" for way, speed in row["store"].items()))
            found.append(row)
    if args.json:
        args.json.write_text(json.dumps({"facts": facts, "rows": found}, indent=1))


if __name__ == "__main__":
    main()
