"""A whole fine-tuning run beside the official trainer: time, memory, and AP by epoch, to the same AP.

    python benchmarks/whole_run.py --out whole_run --prepare 1500
    python benchmarks/whole_run.py --out whole_run --json float32.json
    python benchmarks/whole_run.py --out whole_run --json bf16.json --precision bf16

`--prepare N` makes the data, synthetic shapes of 128 pixels as a COCO folder, and one checkpoint for both: the encoder
of nano with a smaller decoder, trained N steps from random weights. The second command trains both from it, each run in
a process of its own: the same images, batches of 4, learning rates, weight decay, EMA (whose weights are evaluated) and
evaluations after each epoch, without augmentation, with the same threads and loader workers; order of the images and
random numbers are each package's own. Both log to CSV files alone, and write a checkpoint after each epoch.

Columns: seconds from the start of the training to its end; seconds of processor time of the process and its workers;
memory, the peak of the process; AP50 and AP after each epoch. A way counts where each of its runs reaches AP50 >= 0.5
and the last AP of its seeds lies within 0.05. The ratio is that of the times to the highest AP that all runs reach,
between two evaluations by a straight line. Without `rfdetr` there is `ours` alone.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

SIDE, BATCH, CLASSES = 128, 4, 3
DECODER = {"num_queries": 30, "group_detr": 5}
ENOUGH_AP50, LARGEST_SPREAD = 0.5, 0.05
CLASS_LOSS = 6.0
RATES = {"learning_rate": 1e-4, "learning_rate_encoder": 1.5e-4}
# From random weights all parts learn at one rate.
PREPARATION = {
    "eval_strategy": "no", "save_strategy": "no", "lr_scheduler_type": "cosine", "warmup_steps": 100,
    "learning_rate": 3e-4, "learning_rate_encoder": 3e-4, "layer_decay": 1.0, "component_decay": 1.0,
}  # fmt: skip


def data_folder(out: Path) -> Path:
    return out / "data"


def settings(args: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """Of every run of ours: the official recipe without augmentation."""
    return {
        "output_dir": str(folder), "seed": seed, "per_device_train_batch_size": BATCH, "recipe": "official",
        "multi_scale": "off", "scale_jitter": False, "horizontal_flip": 0.0, "dataloader_num_workers": args.workers,
        "audit": "off", "plots": False, "disable_tqdm": True, "report_to": "none", "logging_steps": 50,
        "mixed_precision": args.precision, **RATES,
    }  # fmt: skip


def prepare(args: argparse.Namespace) -> None:
    """The data, and the checkpoint of both, in our layout and in the official one."""
    from rfdetr_hf import (
        ModelArguments,
        RFDETRConfig,
        RFDETRForObjectDetection,
        RFDETRTrainer,
        RFDETRTrainingArguments,
        make_shapes_dataset,
    )
    from rfdetr_hf.data.shards.writer import convert_dataset

    args.out.mkdir(parents=True, exist_ok=True)
    sizes = {"train": args.images, "validation": args.images // 4}
    splits = {name: make_shapes_dataset(size, SIDE, seed=1, split=name) for name, size in sizes.items()}
    convert_dataset(splits, data_folder(args.out), "folder", 1)
    # The official trainer asks for a test split.
    shutil.copytree(data_folder(args.out) / "valid", data_folder(args.out) / "test", dirs_exist_ok=True)
    fields = ModelArguments().config_fields(splits["train"]) | DECODER
    fields |= {"resolution": SIDE, "class_loss_coefficient": CLASS_LOSS}
    torch.manual_seed(0)
    model = RFDETRForObjectDetection(RFDETRConfig.from_variant("nano", **fields))
    options = settings(args, 0, args.out / "prepare") | PREPARATION | {"max_steps": args.prepare}
    trainer = RFDETRTrainer(
        model, RFDETRTrainingArguments(**options), make_shapes_dataset(16 * args.images, SIDE, seed=2)
    )
    trainer.train()
    model.save_pretrained(args.out / "start")
    model.save_official(args.out / "start.pth")


def ours(args: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    from transformers import TrainerCallback

    from rfdetr_hf import RFDETRForObjectDetection, RFDETRTrainer, RFDETRTrainingArguments, load_detection_dataset

    epochs: list[dict[str, float]] = []

    class Scores(TrainerCallback):
        def on_evaluate(self, *_: Any, metrics: dict[str, float], **__: Any) -> None:
            epochs.append(scores(started, metrics["eval_map_50"], metrics["eval_map"]))

    data = load_detection_dataset(str(data_folder(args.out)))
    model = RFDETRForObjectDetection.from_pretrained(args.out / "start")
    options = settings(args, seed, folder) | {"num_train_epochs": args.epochs, "torch_compile": args.compile}
    started, loading = time.perf_counter(), time.process_time()
    splits = data["train"], data["validation"]
    RFDETRTrainer(model, RFDETRTrainingArguments(**options), *splits, callbacks=[Scores()]).train()
    return {"seconds": time.perf_counter() - started, "loading": loading, "epochs": epochs}


def official(args: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """Its modules as `RFDETR.train` joins them, which has no place for a callback and knows no bfloat16 on a CPU."""
    from pytorch_lightning import Callback
    from rfdetr import RFDETRNano
    from rfdetr.config import TrainConfig
    from rfdetr.training import RFDETRDataModule, RFDETRModelModule, build_trainer

    epochs: list[dict[str, float]] = []

    class Scores(Callback):
        def on_validation_end(self, trainer: Any, *_: Any) -> None:
            if not trainer.sanity_checking:
                found = trainer.callback_metrics
                epochs.append(scores(started, float(found["val/mAP_50"]), float(found["val/mAP_50_95"])))

    patches = {"positional_encoding_size": SIDE // 16, "num_select": DECODER["num_queries"]}
    start = str(args.out / "start.pth")
    fields = DECODER | patches | {"resolution": SIDE, "num_classes": CLASSES, "device": args.device}
    detector = RFDETRNano(pretrain_weights=start, **fields)
    config = TrainConfig(
        dataset_dir=str(data_folder(args.out)), output_dir=str(folder), dataset_file="roboflow", epochs=args.epochs,
        batch_size=BATCH, grad_accum_steps=1, multi_scale=False, expanded_scales=False, scale_jitter=False,
        aug_config={}, num_workers=args.workers, seed=seed, tensorboard=False, progress_bar=None, use_ema=True,
        cls_loss_coef=CLASS_LOSS,
        checkpoint_interval=1, amp_dtype="bf16" if args.precision == "bf16" else None,
    )  # fmt: skip
    precision = {"precision": "bf16-mixed"} if args.precision == "bf16" else {}
    started, loading = time.perf_counter(), time.process_time()
    module = RFDETRModelModule(detector.model_config, config)
    trainer = build_trainer(config, detector.model_config, accelerator=args.device, **precision)
    trainer.callbacks.append(Scores())
    trainer.fit(module, RFDETRDataModule(detector.model_config, config))
    return {"seconds": time.perf_counter() - started, "loading": loading, "epochs": epochs}


def scores(started: float, ap50: float, ap: float) -> dict[str, float]:
    return {"seconds": time.perf_counter() - started, "ap50": ap50, "ap": ap}


WAYS = {"ours": ours, "rfdetr": official}


def child(args: argparse.Namespace) -> None:
    """One run, in this process; its figures go into a file."""
    way, seed = args.run[0], int(args.run[1])
    torch.set_num_threads(args.threads)
    folder = args.out / f"{way}-{args.precision}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    row = WAYS[way](args, seed, folder) | {"way": way, "seed": seed, "precision": args.precision}
    row["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    if args.device == "cuda":
        row["memory"] = torch.cuda.max_memory_reserved() / 2**20
    (args.out / "row.json").write_text(json.dumps(row), encoding="utf-8")


def run(args: argparse.Namespace, way: str, seed: int) -> dict[str, Any]:
    """One run in a process of its own, whose processor time holds that of its workers."""
    command = [sys.executable, __file__, *sys.argv[1:], "--run", way, str(seed)]
    log = args.out / f"{way}-{args.precision}-{seed}.log"
    with log.open("w", encoding="utf-8") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the run {way} with seed {seed} failed: see {log}")
    row = json.loads((args.out / "row.json").read_text(encoding="utf-8"))
    row["cpu"] = used.ru_utime + used.ru_stime - row.pop("loading")
    return row


def seconds_to(row: dict[str, Any], target: float) -> float:
    """Seconds until a run has an AP, between two evaluations by a straight line."""
    before = {"seconds": 0.0, "ap": 0.0}
    for epoch in row["epochs"]:
        if epoch["ap"] >= target:
            share = (target - before["ap"]) / max(epoch["ap"] - before["ap"], 1e-9)
            return before["seconds"] + share * (epoch["seconds"] - before["seconds"])
        before = epoch
    return float("nan")


def compare(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whether each way counts, and times to the AP that all runs reach as shares of ours."""
    target = min(max(epoch["ap"] for epoch in row["epochs"]) for row in rows)
    found: dict[str, Any] = {"target": target, "counts": True}
    for way in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == way]
        last = [row["epochs"][-1]["ap"] for row in own]
        counts = min(max(epoch["ap50"] for epoch in row["epochs"]) for row in own) >= ENOUGH_AP50
        counts = counts and max(last) - min(last) < LARGEST_SPREAD
        figures = {"seconds_to_target": statistics.mean(seconds_to(row, target) for row in own), "counts": counts}
        figures |= {name: statistics.mean(row[name] for row in own) for name in ("seconds", "cpu", "memory")}
        found[way] = figures | {"ap": statistics.mean(last), "spread": max(last) - min(last)}
        found["counts"] = found["counts"] and counts
    if {"ours", "rfdetr"} <= found.keys():
        names = ("seconds_to_target", "seconds", "cpu", "memory")
        found["ratios"] = {
            name: found["rfdetr"][name] / found["ours"][name] if found["ours"][name] else float("nan") for name in names
        }
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command line."""
    parser.add_argument("--out", type=Path, default=Path("whole_run"), help="folder of data, checkpoint and runs")
    parser.add_argument("--prepare", type=int, metavar="STEPS", help="make data and checkpoint, and end")
    parser.add_argument("--images", type=int, default=240, help="of the training split; a quarter more to evaluate")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--precision", default="no", choices=["no", "bf16"], help="autocast of both")
    parser.add_argument("--compile", action="store_true", help="ours with torch_compile")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    args = parser.parse_args()
    if args.prepare or args.run:
        return prepare(args) if args.prepare else child(args)
    if not (args.out / "start.pth").exists():
        raise SystemExit(f"{args.out} has no checkpoint: run with --prepare STEPS first")
    rows = []
    print(f"{'way':8}{'seed':>5}{'seconds':>9}{'cpu s':>9}{'MB':>7}  AP50 / AP by epoch")
    for seed in args.seeds:
        for way in (way for way in args.ways if way == "ours" or find_spec("rfdetr")):
            rows.append(row := run(args, way, seed))
            curve = " ".join(f"{epoch['ap50']:.3f}/{epoch['ap']:.3f}" for epoch in row["epochs"])
            print(f"{way:8}{seed:5}{row['seconds']:9.1f}{row['cpu']:9.1f}{row['memory']:7.0f}  {curve}", flush=True)
    found = compare(rows)
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "compared": found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
