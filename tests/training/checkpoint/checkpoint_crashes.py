"""Kill processes that save checkpoints, check what they leave: `checkpoint_crashes.py everywhere|anytime FOLDER`."""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

from rfdetr_hf.training.checkpoint import directory as checkpointing
from rfdetr_hf.training.checkpoint.directory import atomic_directory, checkpoint_path

DISK_CALLS = ("rename", "fsync", "open", "mkdir", "unlink", "rmdir")


def save(path, content):
    with atomic_directory(path) as folder:
        (folder / "weights.bin").write_bytes(content * 100_000)
        (folder / "shards").mkdir()
        for rank in range(2):
            (folder / "shards" / f"{rank}.bin").write_bytes(content * 1_000)


def content_of(path):
    """The byte that the whole directory is made of, after checking that it is whole."""
    checkpointing.verify(path)
    found = {byte for file in path.rglob("*.bin") for byte in file.read_bytes()}
    assert len(found) == 1 and len(list(path.rglob("*.bin"))) == 3, f"{path} is mixed"
    return bytes(found)


def in_child(work):
    """Run `work` in a process of its own and give back its wait status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            if status:
                traceback.print_exc()
            os._exit(status)
    return os.waitpid(pid, 0)[1]


def die_at(call_number):
    """From now on count the calls that change the disk and kill this process just before one of them."""
    calls = 0

    def counting(function):
        def called(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == call_number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return called

    for name in DISK_CALLS:
        setattr(os, name, counting(getattr(os, name)))


def check_after_crash(root, case, allowed):
    checkpointing.clean_leftovers(root)
    assert not [path for path in root.iterdir() if path.name.startswith(".")], f"{case}: leftovers"
    latest = checkpointing.latest_valid_checkpoint(root)
    assert latest is not None, f"{case}: nothing left"
    assert (latest.name, content_of(latest)) in allowed, f"{case}: {latest.name} holds {content_of(latest)!r}"


def everywhere(root):
    """Die before each single call that changes the disk: while adding, while replacing, while rotating."""
    old, new = ("checkpoint-1", b"a"), ("checkpoint-2", b"b")
    cases = {
        "add": (lambda: save(checkpoint_path(root, 2), b"b"), {old, new}),
        "replace": (lambda: save(checkpoint_path(root, 1), b"b"), {old, ("checkpoint-1", b"b")}),
        "rotate": (lambda: (save(checkpoint_path(root, 2), b"b"), checkpointing.rotate(root, 1)), {old, new}),
    }
    counts = {}
    for case, (work, allowed) in cases.items():
        number = 0
        while True:
            number += 1
            shutil.rmtree(root, ignore_errors=True)
            save(checkpoint_path(root, 1), b"a")
            status = in_child(lambda work=work, number=number: (die_at(number), work()))
            check_after_crash(root, f"{case}, call {number}", allowed)
            if os.WIFEXITED(status):
                assert os.WEXITSTATUS(status) == 0, f"{case}: the undisturbed save failed"
                break
        counts[case] = number - 1
    return counts


def save_forever(root, report):
    """Save with rotation, each step twice, and tell the step after each commit."""
    step = int(checkpointing.latest_valid_checkpoint(root).name.split("-")[1])
    while True:
        step += 1
        for attempt in range(2):
            save(checkpoint_path(root, step), bytes([step % 251 + attempt]))
            os.write(report, f"{step}\n".encode())
            checkpointing.rotate(root, 1)


def anytime(root):
    """Kill a saving process ten times at a random instant: what it reported as saved is there, or something newer."""
    shutil.rmtree(root, ignore_errors=True)
    save(checkpoint_path(root, 0), b"\x00")
    rng = random.Random(0)
    saved = []
    for _ in range(10):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            save_forever(root, writer)
        os.close(writer)
        time.sleep(rng.uniform(0.02, 0.3))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        reported = [int(line) for line in os.fdopen(reader).read().split()]
        checkpointing.clean_leftovers(root)
        latest = checkpointing.latest_valid_checkpoint(root)
        step = int(latest.name.split("-")[1])
        assert step >= max(reported + saved[-1:], default=0), f"step {step} remains, {reported} were saved"
        assert content_of(latest)[0] - step % 251 in (0, 1)
        saved.append(step)
    return {"steps": saved}


if __name__ == "__main__":
    print(json.dumps({"everywhere": everywhere, "anytime": anytime}[sys.argv[1]](Path(sys.argv[2]))))
