import errno
import json
import os
import random
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from rfdetr_hf.training.checkpoint import directory as checkpointing
from rfdetr_hf.training.checkpoint.directory import (
    MANIFEST,
    CheckpointError,
    atomic_directory,
    checkpoint_path,
    clean_leftovers,
    latest_valid_checkpoint,
    list_checkpoints,
    rotate,
    temporary_path,
    verify,
)


def save(path, content="weights"):
    with atomic_directory(path) as folder:
        (folder / "model.bin").write_text(content)
        (folder / "rng").mkdir()
        (folder / "rng" / "rank0.pt").write_text("state")
    return Path(path)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_directory_appears_complete_with_a_manifest(tmp_path):
    final = tmp_path / "run" / "checkpoint-5"
    with atomic_directory(final) as folder:
        assert folder == temporary_path(final) and folder.parent == final.parent
        (folder / "model.bin").write_text("abc")
        assert not final.exists()
    assert names(tmp_path / "run") == ["checkpoint-5"]
    entry = json.loads((final / MANIFEST).read_text())["files"]["model.bin"]
    assert entry.pop("mtime_ns") == (final / "model.bin").stat().st_mtime_ns
    assert entry == {"size": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    verify(final)


def test_everything_is_synced_before_the_rename(tmp_path, monkeypatch):
    events, opened = [], {}
    real_open, real_fsync, real_rename = os.open, os.fsync, os.rename

    def recording_open(path, *args, **kwargs):
        descriptor = real_open(path, *args, **kwargs)
        opened[descriptor] = Path(path).name
        return descriptor

    def recording_fsync(descriptor):
        events.append(opened[descriptor])
        real_fsync(descriptor)

    def recording_rename(source, target):
        events.append(f"{Path(source).name} -> {Path(target).name}")
        real_rename(source, target)

    monkeypatch.setattr(os, "open", recording_open)
    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "rename", recording_rename)
    save(tmp_path / "checkpoint-1")
    assert events[:2] == ["model.bin", "rank0.pt"]
    assert events[2] == MANIFEST
    assert set(events[3:5]) == {"rng", ".tmp-checkpoint-1"}
    assert events[5:] == [".tmp-checkpoint-1 -> checkpoint-1", tmp_path.name]


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("error", [RuntimeError("rank 3 failed"), KeyboardInterrupt()])
def test_a_failing_block_leaves_what_was_there(tmp_path, existing, error):
    final = tmp_path / "checkpoint-1"
    if existing:
        save(final, "old")
    with pytest.raises(type(error)), atomic_directory(final) as folder:
        (folder / "model.bin").write_text("new")
        raise error
    assert names(tmp_path) == (["checkpoint-1"] if existing else [])
    if existing:
        verify(final)
        assert (final / "model.bin").read_text() == "old"


@pytest.mark.parametrize("place", ["block", "fsync", "manifest"])
def test_a_full_disk_keeps_the_old_checkpoint_and_says_what_to_do(tmp_path, monkeypatch, place):
    final = save(tmp_path / "checkpoint-1", "old")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.bin")

    with monkeypatch.context() as patch:
        if place == "fsync":
            patch.setattr(os, "fsync", full)
        if place == "manifest":
            patch.setattr(checkpointing.json, "dumps", full)
        with pytest.raises(OSError, match="No space left to write .*checkpoint-1.*lower save_total_limit") as caught:
            with atomic_directory(final) as folder:
                (folder / "model.bin").write_text("new")
                if place == "block":
                    full()
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == ["checkpoint-1"]
    verify(final)
    assert (final / "model.bin").read_text() == "old"


@pytest.mark.parametrize("error", [RuntimeError("unexpected pos 576 vs 534"), SafetensorError("I/O error")])
def test_a_full_disk_is_recognised_behind_vague_errors(tmp_path, monkeypatch, error):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match="No space left to write") as caught, atomic_directory(tmp_path / "checkpoint-1"):
        raise error
    assert caught.value.__cause__ is error
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 30))
    with pytest.raises(type(error), match=str(error)), atomic_directory(tmp_path / "checkpoint-1"):
        raise error
    assert names(tmp_path) == []


def test_other_write_errors_pass_unchanged(tmp_path):
    with pytest.raises(PermissionError, match="read-only"), atomic_directory(tmp_path / "checkpoint-1"):
        raise PermissionError(errno.EACCES, "read-only")
    assert names(tmp_path) == []


def test_a_failing_rename_puts_the_old_directory_back(tmp_path, monkeypatch):
    final = save(tmp_path / "best", "old")
    real = os.rename

    def fail_for_new(source, target):
        if Path(source).name.startswith(".tmp-"):
            raise OSError(errno.EIO, "broken disk")
        real(source, target)

    monkeypatch.setattr(os, "rename", fail_for_new)
    with pytest.raises(OSError, match="broken disk"):
        save(final, "new")
    assert names(tmp_path) == ["best"]
    assert (final / "model.bin").read_text() == "old"


def test_replacing_is_whole(tmp_path):
    save(tmp_path / "best", "old")
    (tmp_path / "best" / "stray.txt").write_text("of the old one")
    save(tmp_path / "best", "new")
    assert names(tmp_path) == ["best", "set-aside"]
    assert names(tmp_path / "best") == [MANIFEST, "model.bin", "rng"]
    assert (tmp_path / "best" / "model.bin").read_text() == "new"
    (stray,) = (tmp_path / "set-aside").glob("*-replaced-best/best/*")
    assert stray.read_text() == "of the old one"


def test_foreign_directories_are_not_replaced(tmp_path):
    (tmp_path / "best").mkdir()
    save(tmp_path / "best")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    with pytest.raises(FileExistsError, match="photos exists and is no checkpoint"):
        save(tmp_path / "photos")
    assert names(tmp_path / "photos") == ["cat.jpg"]


def damage_missing(path):
    (path / "model.bin").unlink()


def damage_short(path):
    (path / "rng" / "rank0.pt").write_text("stat")


def damage_flipped(path):
    (path / "model.bin").write_text("weighty")


def damage_no_manifest(path):
    (path / MANIFEST).unlink()


def damage_cut_manifest(path):
    (path / MANIFEST).write_text((path / MANIFEST).read_text()[:40])


def damage_empty_manifest(path):
    (path / MANIFEST).write_text('{"files": {"model.bin": {}}}')


def damage_names(path, name):
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"][name] = {"size": 1, "sha256": "x"}
    (path / MANIFEST).write_text(json.dumps(manifest))


# What no file below the folder can be called.
ODD_NAMES = ("", ".", "../model.bin", "rng/../model.bin", "/etc/hostname", "a\0b", "a\ud800b", "a" * 300)
DAMAGES = [
    *((partial(damage_names, name=name), r"manifest\.json cannot be read|aaa cannot be read") for name in ODD_NAMES),
    (damage_missing, r"model\.bin is missing"),
    (damage_short, r"rank0\.pt has 4 bytes instead of 5"),
    (damage_flipped, r"model\.bin has changed since it was saved"),
    (damage_no_manifest, r"manifest\.json is missing"),
    (damage_cut_manifest, r"manifest\.json cannot be read"),
    (damage_empty_manifest, r"manifest\.json cannot be read"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES)
def test_damage_is_found_and_the_one_before_is_used(tmp_path, caplog, damage, reason):
    good, bad = save(tmp_path / "checkpoint-9"), save(tmp_path / "checkpoint-10")
    damage(bad)
    with pytest.raises(CheckpointError, match=reason):
        verify(bad)
    assert latest_valid_checkpoint(tmp_path) == good
    assert len(caplog.records) == 1
    assert "checkpoint-10" in caplog.text


def test_a_manifest_deletes_nothing_outside_its_folder(tmp_path):
    """Before, rotation deleted whatever a manifest named, and what lay behind a linked folder."""
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    precious = [tmp_path / "precious", elsewhere / "precious"]
    for file in precious:
        file.write_text("weights")
    named = {1: "../../precious", 2: str(precious[0]), 3: "linked/precious"}
    for step in (1, 2, 3, 4):
        save(checkpoint_path(run, step))
    sums = json.loads((run / "checkpoint-4" / MANIFEST).read_text())["files"]["model.bin"]
    for step, name in named.items():
        path = run / f"checkpoint-{step}" / MANIFEST
        (path.parent / "linked").symlink_to(elsewhere)
        manifest = json.loads(path.read_text())
        manifest["files"][name] = sums
        path.write_text(json.dumps(manifest))
    assert len(rotate(run, 1)) == 3 and [path.read_text() for path in precious] == ["weights"] * 2
    assert not list(run.glob("checkpoint-[123]"))


def test_an_unreadable_file_counts_as_damage(tmp_path, monkeypatch):
    good, bad = save(tmp_path / "checkpoint-1"), save(tmp_path / "checkpoint-2")
    real = Path.open

    def failing_open(path, *args, **kwargs):
        if path == bad / "model.bin":
            raise OSError(errno.EIO, "Input/output error")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", failing_open)
    with pytest.raises(CheckpointError, match=r"model\.bin cannot be read: .*Input/output error"):
        verify(bad)
    assert latest_valid_checkpoint(tmp_path) == good


def test_latest_goes_by_number_and_ignores_other_names(tmp_path):
    assert latest_valid_checkpoint(tmp_path / "nowhere") is None
    assert latest_valid_checkpoint(tmp_path) is None
    for name in ("checkpoint-9", "checkpoint-100", "checkpoint-20", "best", "checkpoint-200-old"):
        save(tmp_path / name)
    (tmp_path / "checkpoint-500").write_text("a file")
    assert latest_valid_checkpoint(tmp_path) == checkpoint_path(tmp_path, 100)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]


def make_run(root, steps, broken=()):
    for step in steps:
        save(checkpoint_path(root, step))
    for step in broken:
        damage_missing(checkpoint_path(root, step))
    return lambda: [int(path.name.split("-")[1]) for path in list_checkpoints(root)]


@pytest.mark.parametrize(
    ("limit", "broken", "left"),
    [
        (None, [], [1, 2, 3, 4]),
        (4, [], [1, 2, 3, 4]),
        (2, [], [3, 4]),
        (1, [], [4]),
        (1, [3, 4], [2, 4]),
        (2, [2, 3, 4], [1, 4]),
        (2, [1, 2, 3, 4], [3, 4]),
    ],
)
def test_rotation(tmp_path, limit, broken, left):
    steps = make_run(tmp_path, [1, 2, 3, 4], broken)
    deleted = rotate(tmp_path, limit)
    assert steps() == left
    assert [path.name for path in deleted] == [f"checkpoint-{step}" for step in (1, 2, 3, 4) if step not in left]
    assert names(tmp_path) == [f"checkpoint-{step}" for step in left]


def test_rotation_understands_relative_paths(tmp_path, monkeypatch):
    steps = make_run(tmp_path, [1, 2, 3])
    monkeypatch.chdir(tmp_path)
    rotate(".", 1)
    assert steps() == [3]


def test_rotation_needs_a_sensible_limit(tmp_path):
    with pytest.raises(ValueError, match="at least 1, not 0"):
        rotate(tmp_path, 0)


def test_leftovers_are_finished_or_removed(tmp_path):
    clean_leftovers(tmp_path / "nowhere")
    save(tmp_path / "complete").rename(tmp_path / ".tmp-checkpoint-3")
    damage_missing(save(tmp_path / "partial"))
    (tmp_path / "partial").rename(tmp_path / ".tmp-checkpoint-4")
    save(tmp_path / "best", "old")
    save(tmp_path / "next", "new").rename(tmp_path / ".tmp-best")
    save(tmp_path / "deleted").rename(tmp_path / ".del-checkpoint-1")
    (tmp_path / ".tmp-note").write_text("a user's file")
    (tmp_path / ".del-push-12-1").mkdir()
    (tmp_path / ".del-push-12-1" / "model.safetensors").write_text("a part of a checkpoint, for an upload")
    clean_leftovers(tmp_path)
    assert names(tmp_path) == [".tmp-note", "best", "checkpoint-3"]
    assert (tmp_path / "best" / "model.bin").read_text() == "old"
    verify(tmp_path / "checkpoint-3")


def test_only_leftovers_of_this_package_are_touched(tmp_path):
    ours = [".del-best", ".tmp-last", ".del-push", ".tmp-.del-push", ".del-push-12-3", ".del-checkpoint-3"]
    theirs = [".tmp-mywork", ".del-notes", ".tmp-checkpoint-old", ".tmp-bestof", ".tmp-", "checkpoint-4"]
    for name in (*ours, *theirs):
        (tmp_path / name).mkdir()
    save(tmp_path / "whole").rename(tmp_path / ".tmp-whole")
    clean_leftovers(tmp_path)
    assert names(tmp_path) == sorted([*theirs, ".tmp-whole"])


def test_a_stale_temporary_directory_does_not_leak_into_the_next_save(tmp_path):
    stale = temporary_path(tmp_path / "checkpoint-1")
    stale.mkdir()
    (stale / "stale.bin").write_text("old")
    save(tmp_path / "checkpoint-1")
    assert names(tmp_path / "checkpoint-1") == [MANIFEST, "model.bin", "rng"]


def crash(case, folder):
    script = Path(__file__).with_name("checkpoint_crashes.py")
    done = subprocess.run([sys.executable, script, case, folder], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_before_any_system_call_leaves_a_usable_checkpoint(tmp_path):
    counts = crash("everywhere", tmp_path / "run")
    assert counts["add"] > 10 and counts["replace"] > 15 and counts["rotate"] > 15


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_at_random_instants_leave_a_usable_checkpoint(tmp_path):
    assert len(crash("anytime", tmp_path / "run")["steps"]) == 10


def draw():
    numbers = [random.random(), random.gauss(0, 1), *np.random.randn(3), *torch.rand(3).tolist()]
    return numbers + (torch.rand(3, device="cuda").tolist() if torch.cuda.is_available() else [])


def test_random_state_round_trip(tmp_path):
    # One Gaussian drawn: Python and NumPy keep the second of the pair for the next call.
    random.gauss(0, 1)
    np.random.randn()
    torch.save(checkpointing.rng_state(), tmp_path / "rng.pt")
    expected = draw()
    assert draw() != expected
    state = torch.load(tmp_path / "rng.pt", weights_only=True)
    checkpointing.set_rng_state(state)
    assert draw() == expected
    assert isinstance(state["python"], list)


def test_random_state_from_another_kind_of_device_is_announced(monkeypatch, caplog):
    state = checkpointing.rng_state() | {"cuda": torch.zeros(16, dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    checkpointing.set_rng_state(state)
    assert "saved with CUDA" in caplog.text
