"""Kill a small training again and again, in every way that was ever seen, and compare what it ends with.

    python tools/kill_runs.py FOLDER [--kills 60] [--steps 400] [--seed 0]

A run that is never disturbed comes first. Its twin is started under a launcher or alone, ended, resumed, ended again…:
SIGKILL at a random instant, within a save, within a rename; the launcher alone; Ctrl-C to the foreground group; a
second writer beside it; a start from an older checkpoint. Its disk is slow, so saves take their time; a diary tells
what of the disk was being changed at the end. At last weights, average, optimizer and `metrics.csv` of both have to be
the same, bit for bit. Takes about half a minute a kill on two cores.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "distributed"))

from kill import differences, wait_for_training  # noqa: E402
from launching import WORKER, environment, free_port, run  # noqa: E402

LIMIT = 180
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--mixed_precision", "no", "--num_machines", "1"]
KINDS = (
    "any",
    "save",
    "rename",
    "launcher",
    "rename",
    "save",
    "ctrl-c",
    "rename",
    "writers",
    "rewind",
    "save",
    "launcher",
)


def tiny_config(folder):
    """A model that trains in seconds on a CPU."""
    from rfdetr_hf import RFDETRConfig

    names = ("circle", "square", "triangle")
    backbone = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8, "num_windows": 2,
                "out_indices": [1, 2, 3], "image_size": 64}  # fmt: skip
    RFDETRConfig.from_variant(
        "nano", backbone_config=backbone, resolution=64, d_model=32, decoder_ffn_dim=64, decoder_layers=2,
        num_queries=10, decoder_self_attention_heads=2, decoder_cross_attention_heads=4, group_detr=3,
        id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)},
    ).save_pretrained(folder)  # fmt: skip


def job_of(folder, name, steps, **fields):
    """A job of `worker.py`: many saves, some evaluations, loader workers."""
    options = {
        "max_steps": steps, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 2, "eval_strategy": "steps",
        "eval_steps": 20, "logging_steps": 2, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1,
        "drop_path": 0.1, "lr_scheduler_type": "cosine", "dataloader_num_workers": 1,
    }  # fmt: skip
    job = {"output_dir": str(folder / name), "config": str(folder / "config"), "options": options}
    return job | {"images": 12, "held_out": 5, **fields}


def begin(job, launched):
    """Start a training in a session of its own, below `accelerate launch` or alone."""
    words = [*LAUNCH, "--num_processes", "1", "--main_process_port", str(free_port())] if launched else [sys.executable]
    with Path(job["output_dir"] + ".out").open("a") as out:
        return subprocess.Popen(
            [*words, str(WORKER), json.dumps(job)], env=environment(), stdout=out, stderr=out, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip


def processes_of(job):
    """All processes with the run's directory on their command line, but for workers: those of the training last."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if job["output_dir"].encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return sorted(found)


def kill_all(job):
    """SIGKILL to everything at once: first stopped, so that nothing has the time to react to the end of another."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in processes_of(job):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass


def wait_until_gone(job, limit=LIMIT):
    """Wait for the end of all processes of a run; returns whether it came."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if not processes_of(job):
            return True
        time.sleep(0.05)
    return False


def wait_for_diary(diary, process, kinds):
    """Wait until the disk is being changed in one of some ways."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline and process.poll() is None:
        if at(diary).startswith(kinds):
            return
        time.sleep(0.001)


def at(diary):
    """What of the disk is being changed: "rename …/.tmp-checkpoint-6", or nothing."""
    lines = diary.read_text().splitlines() if diary.exists() else []
    return lines[-1].removeprefix("begin ") if lines and lines[-1].startswith("begin ") else ""


def where(job, diary):
    """Where a run was when it ended: within a rename, within a save, or between."""
    change = at(diary)
    if change.startswith(("rename", "replace")):
        name, path = change.split(" ", 1)
        return f"{name} of {Path(path).name}"
    saving = [path.name for path in Path(job["output_dir"]).glob(".tmp-*") if path.is_dir()]
    return f"save of {saving[0].removeprefix('.tmp-')}" if saving else "between"


def checkpoints_of(job):
    """Steps of the checkpoints."""
    return sorted(int(path.name.split("-")[1]) for path in Path(job["output_dir"]).glob("checkpoint-*"))


def disturb_once(job, kind, rng, diary):
    """Start, end in one way; returns a row of the table."""
    steps, launched, resume = checkpoints_of(job), kind in ("launcher", "ctrl-c") or rng.random() < 0.3, "auto"
    if kind == "rewind" and len(steps) > 1:
        resume = f"{job['output_dir']}/checkpoint-{steps[-2]}"
    diary.unlink(missing_ok=True)
    process = begin(job | {"resume": resume, "slow_disk": {"path": str(diary), "seconds": 0.01}}, launched)
    wait_for_training(job["output_dir"], [process], LIMIT)
    if kind in ("save", "rename"):
        for _ in range(rng.randrange(3)):
            wait_for_diary(diary, process, "fsync")
            time.sleep(rng.uniform(0, 1))
        wait_for_diary(diary, process, "rename" if kind == "rename" else "fsync")
    else:
        time.sleep(rng.uniform(0, 2))
    second = ""
    if kind == "writers":
        other = begin(job | {"resume": True}, False)
        second = f", second writer ended with {other.wait(timeout=LIMIT)}"
    if process.poll() is not None:
        raise AssertionError(f"ended by itself ({process.returncode}) before it was killed: {kind}")
    if kind == "launcher":
        process.kill()
    elif kind == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)
    else:
        kill_all(job)
    gone = wait_until_gone(job)
    process.wait()
    state = json.loads((Path(job["output_dir"]) / "status.json").read_text())["state"]
    found = where(job, diary) if kind not in ("launcher", "ctrl-c") else "gone" if gone else "ORPHAN"
    return {"kind": kind, "below": "accelerate" if launched else "alone", "from": resume.rpartition("/")[2],
            "at": found + second, "status": state, "checkpoints": checkpoints_of(job)}  # fmt: skip


def main():
    """Disturb a run, print the table, and exit with 1 if anything differs or was left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    tiny_config(options.folder / "config")
    whole, killed = (job_of(options.folder, name, options.steps) for name in ("undisturbed", "killed"))
    run(whole)
    rng, rows, diary = random.Random(options.seed), [], options.folder / "diary"
    for number in range(options.kills):
        rows.append(disturb_once(killed, KINDS[number % len(KINDS)], rng, diary))
        print(f"{number + 1:>3}", *(f"{str(value):<{width}}" for value, width in
              zip(rows[-1].values(), (9, 11, 15, 45, 10, 12), strict=True)), flush=True)  # fmt: skip
    run(killed | {"resume": "auto"})
    found = differences(whole["output_dir"], killed["output_dir"], options.steps)
    places = Counter(row["at"].split(" ")[0].rstrip(",") for row in rows)
    print(json.dumps({"kinds": Counter(row["kind"] for row in rows), "hit": places, "different": found}))
    wrong = [row for row in rows if row["status"] == "finished" or "ORPHAN" in row["at"]]
    wrong += [row for row in rows if row["kind"] == "writers" and "ended with 1" not in row["at"]]
    wrong += [row for row in rows if row["kind"] in ("launcher", "ctrl-c") and row["status"] != "preempted"]
    if found or wrong:
        sys.exit(f"different: {found}; wrong: {wrong}")


if __name__ == "__main__":
    main()
