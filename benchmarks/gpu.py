"""All that has to be measured on a GPU, in one command: correctness first, then steps, parts, waits and loaders.

    python benchmarks/gpu.py --out gpu_report --minutes 10
    python benchmarks/gpu.py --out gpu_report --rows steps:nano:b4:bf16 waits
    python benchmarks/gpu.py --list

Each row runs in a process of its own with a limit of time, the most valuable first, and `results.jsonl` and `report.md`
are written after each, so that a command that is cut off leaves what it has measured. The tables of `report.md` belong
into `docs/guides/performance.md`. Rows of `rfdetr` run where it is installed. Exit code 1: a check failed;
2: there is no GPU (`--device cpu --tiny` runs the rows on a CPU with small models, which tests this file alone).
"""

import argparse
import collections
import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

TASKS = {"nano": "detection", "medium": "detection", "seg-medium": "segmentation", "keypoint-preview": "keypoints"}
OURS = {
    "float32": {"mixed_precision": "no"},
    "bf16": {"mixed_precision": "bf16"},
    "bf16+compile": {"mixed_precision": "bf16", "torch_compile": True},
}
PEERS = ("rfdetr", "rfdetr+compile", "transformers")
# Dense bfloat16 and TF32 products in 10^12 operations a second, from NVIDIA's data sheets.
PEAK = {"H200": (989, 495), "H100": (989, 495), "A100": (312, 156), "L4": (121, 60), "T4": (65, 8), "4090": (165, 83)}
# Where a step may wait for the device, by the function that reads: one read-back of the costs where SciPy matches.
EXPECTED_WAITS = {"solve_on_host"}
CHECKS = ("tests", "correctness", "waits", "recompilations", "one-rank")
WARM_UP, TIMED, PROFILED = 10, 30, 3
TINY = {
    "resolution": 96, "d_model": 32, "decoder_ffn_dim": 64, "decoder_layers": 2, "num_queries": 12, "group_detr": 2,
    "decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 2,
}  # fmt: skip
TINY_BACKBONE = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8, "num_windows": 1,
    "image_size": 96, "out_indices": [1, 2, 3],
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ what is measured


def make_model(variant: str, tiny: bool, seed: int = 0) -> Any:
    """A model of ours with random weights, for the classes of the synthetic shapes."""
    from rfdetr_hf import ModelArguments, RFDETRConfig, make_shapes_dataset, model_class

    task = TASKS[variant]
    fields = ModelArguments().config_fields(make_shapes_dataset(1, task=task))
    if tiny:
        fields |= TINY | {"backbone_config": TINY_BACKBONE}
    torch.manual_seed(seed)
    return model_class(task)(RFDETRConfig.from_variant(variant, **fields))


def make_trainer(args: argparse.Namespace, variant: str, batch_size: int, folder: str, **options: Any) -> Any:
    """A trainer whose loader gives the same few batches again and again, from memory."""
    from rfdetr_hf import RFDETRTrainer, RFDETRTrainingArguments, make_shapes_dataset

    class FromMemory(RFDETRTrainer):
        def get_train_dataloader(self) -> Any:
            loader = super().get_train_dataloader()
            batches = [batch for batch, _ in zip(loader, range(2), strict=False)]
            return Repeated(loader, batches)

        def training_step(self, window: Any, state: Any) -> Any:
            result = super().training_step(window, state)
            # Not as a callback, for which a step would be settled at once.
            self.after_step(self.args, state, self.control)
            return result

        def after_step(self, *_: Any) -> None:
            """Is replaced by whoever measures steps."""

    model = make_model(variant, args.tiny)
    side = model.config.resolution
    data = make_shapes_dataset(5 * batch_size, image_size=side, task=TASKS[variant])
    steps = 2 + args.warm_up + args.timed + PROFILED
    settings = {
        "max_steps": steps, "per_device_train_batch_size": batch_size, "gradient_accumulation_steps": 1,
        "multi_scale": "off", "logging_steps": 10_000, "save_strategy": "no", "eval_strategy": "no", "audit": "off",
        "plots": False, "disable_tqdm": True, "dataloader_num_workers": 0, "output_dir": folder,
    }  # fmt: skip
    return FromMemory(model, RFDETRTrainingArguments(**(settings | options)), data)


class Repeated:
    """A loader that gives batches from memory as often as the one it stands for would."""

    def __init__(self, loader: Any, batches: list[Any]) -> None:
        self.loader, self.batches = loader, batches
        self.batch_sampler, self.num_workers, self.dataset = loader.batch_sampler, 0, loader.dataset

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self)):
            yield self.batches[index % len(self.batches)]


class Clock:
    """Times the steps of a training: their durations on the device, and the profile of the last ones."""

    def __init__(self, device: str, warm_up: int, timed: int) -> None:
        self.cuda, self.warm_up, self.timed = device == "cuda", warm_up, timed
        self.marks: list[Any] = []
        self.profiler: Any = None
        self.seconds = 0.0

    def mark(self) -> Any:
        """An instant: an event of the stream, or the time."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start and stop the measurements by the number of the step."""
        step = state.global_step - self.warm_up
        if step == 0:
            self.wait()
            self.started = time.perf_counter()
            if self.cuda:
                torch.cuda.reset_peak_memory_stats()
        if 0 <= step <= self.timed:
            self.marks.append(self.mark())
        if step == self.timed:
            self.wait()
            self.seconds = time.perf_counter() - self.started
            self.profiler = torch.profiler.profile()
            self.profiler.__enter__()
        if step == self.timed + PROFILED:
            self.wait()
            self.profiler.__exit__(None, None, None)
            control.should_training_stop = True

    def wait(self) -> None:
        """Let the device finish."""
        if self.cuda:
            torch.cuda.synchronize()

    def durations(self) -> list[float]:
        """Milliseconds of each timed step."""
        pairs = zip(self.marks, self.marks[1:], strict=False)
        return [a.elapsed_time(b) if self.cuda else (b - a) * 1e3 for a, b in pairs]

    def kernels(self) -> tuple[float, float]:
        """Milliseconds in which the device works, and its launches, of one step."""
        events = [e for e in self.profiler.events() if str(e.device_type).endswith("CUDA")]
        return sum(e.time_range.elapsed_us() for e in events) / 1e3 / PROFILED, len(events) / PROFILED


def speed(clock: Clock, batch_size: int, flops: float, bf16: bool) -> dict[str, Any]:
    """The columns of a row of steps."""
    ordered = sorted(clock.durations())
    row: dict[str, Any] = {
        "images/s": batch_size * clock.timed / clock.seconds,
        "ms median": statistics.median(ordered),
        "ms p90": ordered[int(0.9 * (len(ordered) - 1))],
        "TFLOP/s": flops / 1e9 / statistics.median(ordered),
    }
    if clock.cuda:
        row["busy ms"], row["launches"] = clock.kernels()
        row["GiB"] = torch.cuda.max_memory_allocated() / 2**30
        name = torch.cuda.get_device_name()
        peak = next((rates[not bf16] for key, rates in PEAK.items() if key in name), None)
        if peak:
            row["MFU %"] = 100 * row["TFLOP/s"] / peak
    return row


def steps_of_ours(args: argparse.Namespace, variant: str, batch_size: int, way: str) -> dict[str, Any]:
    """Steps through `RFDETRTrainer`."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(args, variant, batch_size, folder, **OURS[way])
        flops = step_flops(trainer.model, batch_size)
        clock = Clock(args.device, args.warm_up, args.timed)
        trainer.after_step = clock.on_step_end
        trainer.train()
    return speed(clock, batch_size, flops, "bf16" in way)


def step_flops(model: Any, batch_size: int) -> float:
    """Of the products of a forward and a backward pass without losses, by fake tensors."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    side = model.config.resolution
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        outputs = model(torch.zeros(batch_size, 3, side, side))
        outputs.pred_boxes.sum().backward()
    model.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


def steps_of_a_peer(args: argparse.Namespace, variant: str, batch_size: int, way: str) -> dict[str, Any]:
    """Forward, loss, backward, clipping, AdamW and average of a peer's own classes, under bfloat16 autocast."""
    from training_step import WAYS, make_scenes

    scenes = make_scenes(argparse.Namespace(image_size=(640, 480)), batch_size, 3)
    if way.startswith("rfdetr"):
        made = WAYS["official"](variant, scenes)
        model, loss = made.model, made.loss
        batch = made.make_batch()
    else:
        model, batch, loss = native(variant, batch_size)
    model, batch = model.to(args.device), to_device(batch, args.device)
    if "compile" in way:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=args.device == "cuda")
    shadow = [p.detach().clone() for p in model.parameters()]
    clock = Clock(args.device, args.warm_up, args.timed)
    state = argparse.Namespace(global_step=0)
    control = argparse.Namespace(should_training_stop=False)
    while not control.should_training_stop:
        with torch.autocast(args.device, torch.bfloat16):
            value = loss(batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(shadow, [p.detach() for p in model.parameters()], 0.007)
        state.global_step += 1
        clock.on_step_end(None, state, control)
    return speed(clock, batch_size, float("nan"), True)


def native(variant: str, batch_size: int) -> tuple[Any, Any, Callable[[Any], Any]]:
    """Transformers' own model of a variant, a batch, and its loss."""
    from transformers import RfDetrConfig, RfDetrForObjectDetection

    ours = make_model(variant, False).config
    model = RfDetrForObjectDetection(RfDetrConfig.from_dict(ours.to_dict())).train()
    side = ours.resolution
    boxes = torch.rand(batch_size, 3, 4) * 0.3 + 0.3
    labels = [{"class_labels": torch.tensor([0, 1, 2]), "boxes": each} for each in boxes]
    batch = {"pixel_values": torch.randn(batch_size, 3, side, side), "labels": labels}
    return model, batch, lambda inputs: model(**inputs).loss


def to_device(value: Any, device: str) -> Any:
    """Nested tensors on a device."""
    if isinstance(value, dict):
        return {name: to_device(each, device) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_device(each, device) for each in value)
    return value.to(device) if hasattr(value, "to") else value


# ------------------------------------------------------------------------------------------------ checks


def environment(args: argparse.Namespace) -> dict[str, Any]:
    """The machine and the versions."""
    found: dict[str, Any] = {"python": platform.python_version(), "cpus": os.cpu_count()}
    for name in ("torch", "transformers", "accelerate", "triton", "rfdetr", "kernels", "torch-linear-assignment"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    if args.device == "cuda":
        query = "--query-gpu=name,driver_version,clocks.max.sm,power.limit"
        answer = subprocess.run(["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True)
        found |= {"gpu": answer.stdout.strip() or torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        found["cudnn"] = torch.backends.cudnn.version()
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    return found | {"commit": commit.stdout.strip() or "unknown"}


def gpu_tests(args: argparse.Namespace) -> dict[str, Any]:
    """`pytest -m gpu`."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = next((line for line in reversed(done.stdout.splitlines()) if line.strip()), "")
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
    return {"ok": done.returncode in (0, 5), "result": last, "failed": failed}


def correctness(args: argparse.Namespace) -> dict[str, Any]:
    """Loss and gradients of three tasks on the device beside those of the CPU, and bfloat16 beside float32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    row: dict[str, Any] = {"ok": True}
    for variant in ("nano", "seg-medium", "keypoint-preview"):
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(args, variant, 2, folder, mixed_precision="no", seed=1)
            batch = next(iter(trainer.get_train_dataloader()))
            results = {}
            for name in ("cpu", args.device, "bf16"):
                device = args.device if name == "bf16" else name
                model = trainer.model.to(device).train()
                model.zero_grad(set_to_none=True)
                inputs = to_device(trainer.to_device(batch), device) | {"seed": 0}
                with torch.autocast(device, torch.bfloat16, enabled=name == "bf16"):
                    loss = model(**inputs).loss
                loss.backward()
                grads = {n: p.grad.detach().cpu() for n, p in model.named_parameters() if p.grad is not None}
                results[name] = loss.item(), grads
            (cpu, ours), (there, theirs), (half, _) = results["cpu"], results[args.device], results["bf16"]
            errors = [float((theirs[n] - g).norm() / (g.norm() + 1e-6)) for n, g in ours.items()]
            figures = {"loss": abs(there / cpu - 1), "gradients": max(errors), "bf16 loss": abs(half / cpu - 1)}
            row |= {f"{variant} {name}": value for name, value in figures.items()}
            row["ok"] &= figures["loss"] < 1e-3 and figures["gradients"] < 1e-2 and figures["bf16 loss"] < 0.02
    return row


def waits(args: argparse.Namespace) -> dict[str, Any]:
    """Where the host waits for the device within three steps, beside the places that are known."""
    found: collections.Counter[str] = collections.Counter()

    def note(message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
        if "synchronizing" in str(message):
            frame: Any = sys._getframe(1)
            while frame is not None and "rfdetr_hf" not in frame.f_code.co_filename:
                frame = frame.f_back
            found[frame.f_code.co_name if frame is not None else f"{filename}:{lineno}"] += 1

    def watch(_: Any, state: Any, control: Any) -> None:
        if args.device == "cuda":
            torch.cuda.set_sync_debug_mode("warn" if 3 <= state.global_step < 6 else "default")
        control.should_training_stop = state.global_step == 6

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        trainer = make_trainer(args, "nano", 4, folder, mixed_precision="bf16")
        trainer.after_step = watch
        trainer.train()
    new = sorted(set(found) - EXPECTED_WAITS)
    return {"ok": not new, "new": new, **{name: count / 3 for name, count in sorted(found.items())}}


def recompilations(args: argparse.Namespace) -> dict[str, Any]:
    """Graphs over the sizes of multi-scale training, with and without drop path, and evaluations between."""
    import torch._dynamo.utils as counters

    counters.counters.clear()
    from rfdetr_hf import make_shapes_dataset

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        options = {"multi_scale": "per_batch", "drop_path": 0.1, "torch_compile": True, "max_steps": 16}
        options["torch_compile_backend"] = "inductor" if args.device == "cuda" else "aot_eager"
        trainer = make_trainer(args, "nano", 4, folder, **options)
        trainer.train()
        side = trainer.model.config.resolution
        trainer.evaluate(make_shapes_dataset(6, image_size=side, split="validation"))
    stats, breaks = counters.counters["stats"], counters.counters["graph_break"]
    limits = [reason for reason in breaks if "recompile limit" in reason or "cache_size_limit" in reason]
    row = {"graphs": stats.get("unique_graphs", 0), "breaks": sum(breaks.values()), "fall-backs": len(limits)}
    return {"ok": not limits, **row, "seconds": time.perf_counter() - started}


def one_rank(args: argparse.Namespace) -> dict[str, Any]:
    """DDP and FSDP2 on one rank (NCCL on a GPU): the losses of the plain process."""
    sys.path.insert(0, str(ROOT / "tests" / "distributed"))
    import launching

    losses: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as root:
        make_model("nano", True).config.save_pretrained(Path(root) / "config")
        for kind in ("alone", "ddp", "fsdp2"):
            record = Path(root) / f"{kind}.json"
            options = {"max_steps": 4, "gradient_accumulation_steps": 1, "mixed_precision": "no", "tf32": False}
            job = {"output_dir": f"{root}/{kind}", "config": f"{root}/config", "options": options}
            job["record"] = str(record)
            env = launching.environment("device" if args.device == "cuda" else "ddp")
            if kind == "fsdp2":
                env |= launching.KINDS["fsdp2"]
                job["fsdp_on_cpu"] = args.device == "cpu"
            if kind != "alone":
                env |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
                env["MASTER_PORT"] = str(launching.free_port())
            worker = [sys.executable, str(launching.WORKER), json.dumps(job)]
            done = subprocess.run(worker, env=env, capture_output=True, text=True)
            if done.returncode:
                return {"ok": False, "failed": kind, "error": done.stderr[-2000:] + done.stdout[-2000:]}
            losses[kind] = [loss for _, loss, _ in json.loads(record.read_text())["losses"]]
    away = {k: max(abs(a / b - 1) for a, b in zip(v, losses["alone"], strict=True)) for k, v in losses.items()}
    return {"ok": max(away.values()) < 1e-4, "ddp": away["ddp"], "fsdp2": away["fsdp2"]}


# ------------------------------------------------------------------------------------------------ rates and parts


def loaders(args: argparse.Namespace) -> dict[str, Any]:
    """Images a second of the training loader by its number of workers, JPEG files of 640 x 480 at 384."""
    import dataloader as bench

    data = bench.make_dataset(64 if args.tiny else 512, 640, 480, 5)
    row = {}
    for workers in (0, 2) if args.tiny else (2, 4, 8, 14):
        made = bench.build_train_dataloader(
            data, bench.build_train_transform(384), bench.LoaderOptions(batch_size=8, num_workers=workers)
        )
        batches = iter(made)
        next(batches)
        started, count = time.perf_counter(), 0
        for _ in batches:
            count += 8
        row[f"{workers} workers"] = count / (time.perf_counter() - started)
    return row


def evaluations(args: argparse.Namespace) -> dict[str, Any]:
    """Images a second of an evaluation: forward pass, post-processing and scores."""
    from rfdetr_hf import make_shapes_dataset

    row = {}
    for variant in ("nano", "seg-medium", "keypoint-preview"):
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(args, variant, 8, folder, mixed_precision="bf16")
            count = 16 if args.tiny else 256
            side = trainer.model.config.resolution
            data = make_shapes_dataset(count, image_size=side, split="validation", task=TASKS[variant])
            metrics = trainer.evaluate(data)
            row[variant] = metrics["eval_samples_per_second"]
    return row


def parts(args: argparse.Namespace, variant: str, batch_size: int) -> dict[str, Any]:
    """The kernels that take most of a step; `trace-<row>.json` in the folder shows it in Perfetto."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(args, variant, batch_size, folder, mixed_precision="bf16")
        clock = Clock(args.device, args.warm_up, args.timed)
        trainer.after_step = clock.on_step_end
        trainer.train()
    clock.profiler.export_chrome_trace(str(Path(args.out) / f"trace-{variant}-b{batch_size}.json"))
    device = "self_device_time_total" if args.device == "cuda" else "self_cpu_time_total"
    averages = sorted(clock.profiler.key_averages(), key=lambda e: -getattr(e, device))
    return {e.key[:60]: getattr(e, device) / 1e3 / PROFILED for e in averages[:12]}


def rows(args: argparse.Namespace) -> dict[str, tuple[float, Callable[[], dict[str, Any]]]]:
    """The seconds that each row may take, and what it runs, most valuable first."""
    found: dict[str, tuple[float, Callable[[], dict[str, Any]]]] = {
        "environment": (60, lambda: environment(args)),
        "tests": (240, lambda: gpu_tests(args)),
        "correctness": (120, lambda: correctness(args)),
    }
    for variant in TASKS:
        for batch_size in (4, 16, 32) if variant in ("nano", "medium") else (4, 16):
            for way in (*OURS, *PEERS):
                peer = way in PEERS
                if peer and (TASKS[variant] == "keypoints" or way == "transformers" and variant.startswith("seg")):
                    continue
                run = steps_of_a_peer if peer else steps_of_ours
                limit = 180 if "compile" in way else 90
                given = variant, batch_size, way
                found[f"steps:{variant}:b{batch_size}:{way}"] = limit, lambda run=run, given=given: run(args, *given)
    found |= {
        "waits": (90, lambda: waits(args)),
        "recompilations": (240, lambda: recompilations(args)),
        "one-rank": (120, lambda: one_rank(args)),
        "loaders": (120, lambda: loaders(args)),
        "evaluations": (120, lambda: evaluations(args)),
        "parts:nano:b4": (90, lambda: parts(args, "nano", 4)),
        "parts:medium:b16": (90, lambda: parts(args, "medium", 16)),
    }
    # Batch 4 and 16 of every model before batch 32, ours and both peers in turn.
    order = {name: ("b32" in name, index) for index, name in enumerate(found)}
    return {name: found[name] for name in sorted(found, key=lambda name: order[name])}


# ------------------------------------------------------------------------------------------------ the command


def run_row(name: str, limit: float, words: list[str]) -> dict[str, Any]:
    """A row in a process of its own; what went wrong is its result."""
    started = time.perf_counter()
    command = [sys.executable, __file__, *words, "--one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"row": name, "error": f"more than {limit:.0f} s"}
    line = done.stdout.strip().rpartition("\n")[2]
    try:
        result = json.loads(line) if done.returncode == 0 else {"error": done.stderr.strip()[-1500:]}
    except ValueError:
        result = {"error": (done.stdout + done.stderr)[-1500:]}
    return {"row": name, **result, "wall s": round(time.perf_counter() - started, 1)}


def report(results: list[dict[str, Any]]) -> str:
    """The rows as Markdown: a table of steps, and a list for the rest."""
    steps = [each for each in results if each["row"].startswith("steps:")]
    columns = [name for name in ("images/s", "ms median", "ms p90", "busy ms", "launches", "MFU %", "GiB")
               if any(name in each for each in steps)]  # fmt: skip
    lines = ["# A training step", "", "| model | batch | way | " + " | ".join(columns) + " |",
             "|" + "---|" * (3 + len(columns))] if steps else []  # fmt: skip
    for each in steps:
        _, variant, batch, way = each["row"].split(":")
        values = [f"{each[c]:.4g}" if c in each else "" for c in columns]
        if "error" in each:
            values = [each["error"].splitlines()[-1][:80] if each["error"] else "failed"] + [""] * (len(columns) - 1)
        lines.append(f"| {variant} | {batch[1:]} | {way} | " + " | ".join(values) + " |")
    for each in results:
        if not each["row"].startswith("steps:"):
            lines += ["", f"# {each['row']}", ""]
            shown = {n: f"{v:.4g}" if isinstance(v, float) else v for n, v in each.items() if n != "row"}
            lines += [f"- {name}: {value}" for name, value in shown.items()]
    return "\n".join(lines) + "\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command line."""
    parser.add_argument("--out", default="gpu_report", help="folder for results.jsonl, report.md and traces")
    parser.add_argument("--minutes", type=float, default=10.0, help="rows that would begin later are left out")
    parser.add_argument("--rows", nargs="+", help="only these; see --list")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small models, few steps: for a test of this file")
    parser.add_argument("--one", help=argparse.SUPPRESS)


def main(argv: list[str] | None = None) -> int:
    """Run the rows; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    args = parser.parse_args(argv)
    args.warm_up, args.timed = (2, 3) if args.tiny else (WARM_UP, TIMED)
    table = rows(args)
    if args.list:
        print("\n".join(table))
        return 0
    if args.device == "cuda" and not torch.cuda.is_available():
        print("PyTorch sees no GPU here; --device cpu --tiny tries the rows on a CPU", file=sys.stderr)
        return 2
    os.environ["ACCELERATE_USE_CPU"] = str(args.device == "cpu").lower()
    if args.one:
        print(json.dumps(table[args.one][1](), default=str))
        return 0
    unknown = set(args.rows or ()) - set(table)
    if unknown:
        parser.error(f"no such rows: {', '.join(sorted(unknown))}; --list names them")
    folder, started = Path(args.out), time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "results.jsonl").exists():
        parser.error(f"{folder / 'results.jsonl'} exists: give another folder with --out")
    words = ["--out", args.out, "--device", args.device, *(["--tiny"] if args.tiny else [])]
    results: list[dict[str, Any]] = []
    for name in args.rows or table:
        left = 60 * args.minutes - (time.perf_counter() - started)
        if left <= 0:
            print(f"{name} and what follows: left out, {args.minutes:g} minutes are over")
            break
        if name.endswith((":rfdetr", ":rfdetr+compile")) and not find_spec("rfdetr"):
            continue
        results.append(run_row(name, min(table[name][0], left), words))
        print(json.dumps(results[-1]), flush=True)
        with (folder / "results.jsonl").open("a") as file:
            file.write(json.dumps(results[-1]) + "\n")
        (folder / "report.md").write_text(report(results))
    checks = [each for each in results if each["row"] in CHECKS]
    return int(any("error" in each or not each["ok"] for each in checks))


if __name__ == "__main__":
    sys.exit(main())
