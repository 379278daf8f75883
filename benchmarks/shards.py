"""What the start of a run over shards costs: time and memory of a process, from the index to the first batch's keys.

python benchmarks/shards.py --shards 134000 --rows 10000
"""

import argparse
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np

from rfdetr_hf import load_detection_dataset, make_shapes_dataset
from rfdetr_hf.data.audit import count_split
from rfdetr_hf.data.pipeline.order import EpochBatchSampler
from rfdetr_hf.data.shards.counts import Counts
from rfdetr_hf.data.shards.index import INDEX, Shard, write_index


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shards", type=int, default=134_000, help="Files of the made-up data set.")
    parser.add_argument("--rows", type=int, default=10_000, help="Rows of a shard at most.")


def resident(field: str = "VmRSS") -> float:
    """Megabytes of this process in memory now; by `VmHWM` the most since `measure` began."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


def make_index(folder: Path, shards: int, rows: int) -> None:
    """The index of a data set whose shards are made up."""
    numbers = np.random.default_rng(0).integers(rows // 2, rows + 1, size=shards).tolist()
    made = []
    for index, count in enumerate(numbers):
        counts = Counts(images=count, objects=[count] * 3, images_with=[count] * 3, objects_per_image={3: count})
        made.append(Shard("train", f"data/train-{index:05d}-of-{shards:05d}.parquet", count, 10**9, counts))
    write_index(str(folder / INDEX), "parquet", make_shapes_dataset(1).features, made)


def measure(folder: Path) -> dict[str, float]:
    """Seconds and megabytes from the address to the keys of the first batches, in the middle of epoch 3.

    `MB` is what there is more at the end, `peak` the most in between.
    """
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before, started = resident(), time.perf_counter()
    train = load_detection_dataset(folder)["train"]
    count_split(train, "train")
    checksum = train.checksum
    sampler = EpochBatchSampler(len(train), 16, seed=1, shards=train.layout)
    sampler.set_epoch(3, len(sampler) // 2)
    keys = list(islice(iter(sampler), 100))
    assert checksum and keys
    seconds = time.perf_counter() - started
    return {"rows": len(train), "seconds": seconds, "MB": resident() - before, "peak": resident("VmHWM") - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        small = Path(place) / "small"
        small.mkdir()
        make_index(small, 10, 10)
        measure(small)  # imports
        big = Path(place) / "big"
        big.mkdir()
        make_index(big, args.shards, args.rows)
        found = measure(big)
        size = (big / INDEX).stat().st_size / 2**20
    print(
        f"{args.shards} shards, {found['rows']:,} rows, index {size:.1f} MB: "
        f"{found['seconds']:.2f} s, {found['MB']:.0f} MB, {found['peak']:.0f} MB at most"
    )


if __name__ == "__main__":
    main()
