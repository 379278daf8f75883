"""One writer in a run directory: real processes, beats of a fifth of a second."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from rfdetr_hf.training.checkpoint import lock
from rfdetr_hf.training.checkpoint.lock import FILE, LockLost, RunInUse, RunLock, read_lock, this_process

BEAT = 0.2
HOLD = """
import sys, time
from rfdetr_hf.training.checkpoint.lock import RunLock
held = RunLock(sys.argv[1], beat=float(sys.argv[2]))
if len(sys.argv) > 3:
    print("waits", flush=True)
held.acquire(wait=len(sys.argv) > 3)
print("held", flush=True)
try:
    while True:
        time.sleep(0.02)
        held.check(before_writing=True)
finally:
    held.release()
"""


@pytest.fixture
def hold(tmp_path):
    """Starts processes that hold the lock of `tmp_path` until something ends them: `hold()`."""
    processes = []

    def start(*words, wait_for_it=True, beat=BEAT):
        command = [sys.executable, "-c", HOLD, str(tmp_path), str(beat), *words]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        if wait_for_it:
            assert processes[-1].stdout.readline() == "held\n"
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def write(root, age=0.0, **fields):
    """A lock as another process may have left it, `age` seconds after its last beat."""
    path = root / FILE
    path.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(this_process(BEAT), **fields))))
    os.utime(path, (time.time() - age,) * 2)


def test_a_second_run_is_refused_by_the_name_of_the_first(tmp_path, hold):
    first = hold()
    started = read_lock(tmp_path).owner.started
    with pytest.raises(RunInUse, match=rf"pid {first.pid}, started {started}") as refusal:
        RunLock(tmp_path, BEAT).acquire()
    assert os.uname().nodename in str(refusal.value) and str(tmp_path) in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_beats_go_on_and_the_end_removes_the_lock(tmp_path):
    held = RunLock(tmp_path, BEAT)
    held.acquire()
    time.sleep(5 * BEAT)
    assert read_lock(tmp_path).silent < 2 * BEAT
    held.release()
    assert not list(tmp_path.iterdir())
    held.check(before_writing=True)
    held.acquire()
    held.release()


def test_the_lock_of_a_killed_process_is_taken_at_once(tmp_path, hold):
    first = hold()
    first.kill()  # not waited for: a process that has ended and whose parent does not look is gone as well
    time.sleep(0.1)
    held = RunLock(tmp_path, 30.0)
    started = time.monotonic()
    held.acquire()
    assert time.monotonic() - started < 3
    held.release()
    assert f"pid {first.pid}" in held.taken_over and "its process is gone" in held.taken_over


@pytest.mark.parametrize(
    ("fields", "taken"),
    [
        ({"process_start": 1.0}, True),  # the pid belongs to another process now
        ({"host": "elsewhere", "process_start": 1.0}, False),  # nothing can be said about the pid
        ({"boot": "before"}, False),
        ({"pid": 0}, False),
        ({"process_start": 0.0}, False),
        ({}, False),
    ],
)
def test_pids_count_on_the_same_start_of_the_same_machine_only(tmp_path, fields, taken):
    write(tmp_path, **fields)
    held = RunLock(tmp_path, BEAT)
    if taken:
        held.acquire()
        held.release()
    else:
        with pytest.raises(RunInUse):
            held.acquire()


@pytest.mark.parametrize("fields", [{"host": "elsewhere"}, {}])
def test_a_lock_that_was_silent_for_three_beats_is_taken_over(tmp_path, fields):
    write(tmp_path, age=4 * BEAT, **fields)
    held = RunLock(tmp_path, BEAT)
    held.acquire()
    assert read_lock(tmp_path).owner.pid == os.getpid()
    held.release()
    assert "is taken over: no sign of life" in held.taken_over


def test_waiting_outlasts_a_dead_container_and_a_clock_that_was_set_back(tmp_path):
    """A container is process 1 of a new host each time."""
    write(tmp_path, age=-1000, host="container-1", pid=1)
    held, started = RunLock(tmp_path, BEAT), time.monotonic()
    held.acquire(wait=True)
    assert 3 * BEAT <= time.monotonic() - started < 3 * BEAT + 3
    held.release()


def test_waiting_ends_when_the_other_does(tmp_path, hold):
    """With beats so long that a busy machine makes neither of them late."""
    first = hold(beat=60.0)
    second = hold("wait", wait_for_it=False, beat=60.0)
    assert second.stdout.readline() == "waits\n"
    time.sleep(2 * BEAT)
    assert second.poll() is None and read_lock(tmp_path).owner.pid == first.pid
    first.send_signal(signal.SIGINT)
    assert second.stdout.readline() == "held\n"


def test_waiting_for_a_run_that_lives_ends_in_the_refusal(tmp_path, hold):
    hold()
    started = time.monotonic()
    with pytest.raises(RunInUse, match="last sign of life"):
        RunLock(tmp_path, BEAT).acquire(wait=True)
    assert time.monotonic() - started > 3 * BEAT


@pytest.mark.parametrize("before", ["nothing", "a dead lock"])
def test_of_many_starts_at_once_one_trains(tmp_path, hold, before):
    if before == "a dead lock":
        write(tmp_path, age=100, host="elsewhere")
    processes = [hold(wait_for_it=False) for _ in range(6)]
    time.sleep(6)
    living = [process for process in processes if process.poll() is None]
    assert len(living) == 1
    assert read_lock(tmp_path).owner.pid == living[0].pid
    refused = [process.communicate()[1] for process in processes if process not in living]
    assert all("is in use by another run" in text for text in refused), refused


def test_a_process_that_was_suspended_finds_the_lock_taken_before_it_writes(tmp_path, hold):
    first = hold()
    os.kill(first.pid, signal.SIGSTOP)
    time.sleep(4 * BEAT)
    second = RunLock(tmp_path, BEAT)
    second.acquire()
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait(timeout=10) == 1
    error = first.stderr.read()
    assert "LockLost" in error and f"pid {os.getpid()}" in error and "writes nothing more" in error
    second.check(before_writing=True)
    assert read_lock(tmp_path).owner.pid == os.getpid()
    second.release()


def test_a_loss_is_seen_between_writes_too(tmp_path):
    held = RunLock(tmp_path, BEAT)
    held.acquire()
    write(tmp_path, token="another", host="elsewhere")
    time.sleep(2 * BEAT)
    with pytest.raises(LockLost, match="host elsewhere"):
        held.check()
    held.release()
    assert read_lock(tmp_path).owner.token == "another"


def test_a_successor_that_has_ended_is_noticed_too(tmp_path):
    """It has removed its lock: nothing shows that it was there but the time that this process was silent."""
    held = RunLock(tmp_path, 100.0)
    held.acquire()
    held._confirmed -= 3 * held.beat + 1
    (tmp_path / FILE).unlink()
    with pytest.raises(LockLost, match="is gone: another run may have come.*writes nothing more"):
        held.check(before_writing=True)
    held.release()
    assert not list(tmp_path.iterdir())


def test_a_lock_that_somebody_removed_comes_back(tmp_path, caplog):
    held = RunLock(tmp_path, BEAT)
    held.acquire()
    (tmp_path / FILE).unlink()
    time.sleep(3 * BEAT)
    held.check()
    assert read_lock(tmp_path).owner.pid == os.getpid() and "had been removed" in caplog.text
    held.release()


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, '{"pid": "x"}', "[1]", '{"pid": 1e400}', "\xff"])
def test_a_broken_lock_counts_by_its_age(tmp_path, content):
    path = tmp_path / FILE
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(RunInUse, match="host unknown"):
        RunLock(tmp_path, BEAT).acquire()
    os.utime(path, (0, 0))
    held = RunLock(tmp_path, BEAT)
    held.acquire()
    held.release()


def test_without_links_the_lock_is_created_exclusively(tmp_path, monkeypatch):
    def refuse(*paths):
        raise OSError("no links here")

    monkeypatch.setattr(lock.os, "link", refuse)
    held = RunLock(tmp_path, BEAT)
    held.acquire()
    with pytest.raises(RunInUse):
        RunLock(tmp_path, BEAT).acquire()
    held.release()


def test_what_a_killed_attempt_left_is_cleaned_up(tmp_path):
    for name in (".run.lock-time-1", ".run.lock.2", ".run.lock-3"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    held = RunLock(tmp_path, BEAT)
    held.acquire()
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    held.release()


def test_a_taker_that_died_of_it_does_not_block_the_next(tmp_path):
    write(tmp_path, age=100, token="dead")
    marker = tmp_path / ".run.lock-dead"
    marker.touch()
    os.utime(marker, (0, 0))
    held = RunLock(tmp_path, BEAT)
    held.acquire()
    held.release()
