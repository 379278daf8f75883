"""What processes hold of shards: of a billion rows when a training begins, and of many epochs."""

import subprocess
import sys

import pytest
from helpers.scripts import ROOT

from rfdetr_hf import convert_dataset, load_detection_dataset, make_shapes_dataset
from rfdetr_hf.data.pipeline.loader import LoaderOptions, build_train_dataloader
from rfdetr_hf.data.pipeline.transforms import build_train_transform
from rfdetr_hf.data.shards import writer

MAKE = """
import sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
from shards import make_index
make_index(Path(sys.argv[1]), 10, 10)
make_index(Path(sys.argv[2]), 134_000, 10_000)
"""
CODE = """
import sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
from shards import measure
small, big = Path(sys.argv[1]), Path(sys.argv[2])
measure(small)
found = measure(big)
print(found["rows"], found["MB"], found["peak"])
"""


@pytest.mark.slow
def test_a_training_over_a_billion_rows_takes_less_than_a_hundred_megabytes(tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "big").mkdir()
    for code in (MAKE, CODE):
        words = [sys.executable, "-c", code, str(tmp_path / "small"), str(tmp_path / "big")]
        out = subprocess.run(words, check=True, cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert int(out[0]) > 10**9
    assert float(out[1]) < 60 and float(out[2]) < 100


def anonymous(pids):
    """Megabytes of processes that are theirs alone, files left out."""
    total = 0
    for pid in pids:
        for line in open(f"/proc/{pid}/smaps_rollup"):
            total += int(line.split()[1]) if line.startswith("Anonymous:") else 0
    return total / 1024


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_memory_of_four_workers_does_not_grow_over_eight_epochs(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "MAX_ROWS", 20)
        convert_dataset({"train": make_shapes_dataset(400, image_size=64, seed=1)}, tmp_path / "shards", "parquet", 1)
    data = load_detection_dataset(tmp_path / "shards", shard_window=4)["train"]
    options = LoaderOptions(batch_size=8, num_workers=4)
    loader = build_train_dataloader(data, build_train_transform(64, [64], multi_scale="off"), options)
    sizes = []
    for epoch in range(8):
        loader.batch_sampler.set_epoch(epoch)
        assert sum(len(batch["pixel_values"]) for batch in loader) == 400
        sizes.append(anonymous([worker.pid for worker in loader._iterator._workers]))
    print("MB of four workers by epoch:", [round(size) for size in sizes])
    assert sizes[7] < 1.05 * sizes[2] + 4
