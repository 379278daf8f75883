"""Starts the jobs of `worker.py`, one process per rank, as a launcher would."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefork import Forked


def slow(*values):
    """Parameters of a test that takes its turn with `-m slow`: one launch of each mechanism runs by default."""
    return pytest.param(*values, marks=pytest.mark.slow)


WORKER = Path(__file__).with_name("worker.py")
LIMIT = 600

KINDS = {
    "ddp": {},
    "device": {},
    "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
              "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"},
} | {
    f"zero{stage}": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}
    for stage in range(4)
}  # fmt: skip


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(kind="ddp", **variables):
    """What the launcher of a kind sets; but for DeepSpeed and "device", processes stay off accelerators."""
    base = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "FSDP_", "RANK", "WORLD_SIZE"))}
    own = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if kind != "device" and not kind.startswith("zero"):
        own["ACCELERATE_USE_CPU"] = "true"
    return base | own | KINDS[kind] | variables


def start(job, world=1, kind="ddp"):
    """Start the processes of a job and return them."""
    port = str(free_port())
    if kind == "fsdp2":
        job = job | {"fsdp_on_cpu": True}
    processes = []
    for rank in range(world):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        ranks |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = environment(kind, **(ranks if world > 1 or kind != "ddp" else {}))
        if sys.platform == "linux" and kind in ("ddp", "fsdp2"):
            processes.append(Forked(job, env))
            continue
        command = [sys.executable, str(WORKER), json.dumps(job)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen(command, env=env, **pipes))
    return processes


def launch(job, nodes, processes):
    """Start the launchers of `nodes` machines, here all on one, with `processes` each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(nodes), "--nproc_per_node",
               str(processes), "--master_addr", "127.0.0.1", "--master_port", str(free_port())]  # fmt: skip
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [
        subprocess.Popen([*command, "--node_rank", str(node), str(WORKER), json.dumps(job)], env=environment(), **pipes)
        for node in range(nodes)
    ]


def accelerate_launch(file, job, nodes=1, processes=2, device="cpu"):
    """Start `accelerate launch` with a configuration file on `nodes` machines, here all on one."""
    port, launchers = str(free_port()), []
    for node in range(nodes):
        command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(file),
                   "--num_processes", str(processes), "--num_machines", str(nodes), "--machine_rank", str(node),
                   "--main_process_ip", "127.0.0.1", "--main_process_port", port]  # fmt: skip
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        env = environment("ddp" if device == "cpu" and "deepspeed" not in Path(file).read_text() else "device")
        launchers.append(subprocess.Popen([*command, str(WORKER), json.dumps(job)], env=env, **pipes))
    return launchers


def finish(processes, limit=LIMIT):
    """Wait for all; returns their exit codes and outputs."""
    deadline = time.monotonic() + limit
    outputs = []
    try:
        for process in processes:
            outputs.append(process.communicate(timeout=max(deadline - time.monotonic(), 1))[0])
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()  # a launcher takes its processes along, which SIGKILL would leave behind
    return [process.returncode for process in processes], outputs


def run(job, world=1, kind="ddp"):
    """Run a job to its end, which has to be a good one; returns the outputs."""
    codes, outputs = finish(start(job, world, kind))
    assert codes == [0] * world, "\n".join(outputs)[-6000:]
    return outputs
