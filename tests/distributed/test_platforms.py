"""The files of examples/platforms: their commands are the project's, and the job script trains through preemptions."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from datasets import DatasetDict
from helpers.models import tiny_model
from helpers.scripts import ROOT
from launching import environment, free_port

from rfdetr_hf import RFDETRImageProcessor, RFDETRTrainingArguments, make_shapes_dataset, parse_arguments
from rfdetr_hf.cli.fit import TYPES

PLATFORMS = ROOT / "examples" / "platforms"
# What the script calls of Slurm: the one starts programs on the nodes, here on this one, the other answers.
STUBS = {
    "srun": 'while [[ $1 == -* ]]; do shift; done\necho $$ > "$SLURM_STUB/srun.pid"\nSLURM_NODEID=0 exec "$@"',
    "scontrol": '[ "$1" = show ] && echo 127.0.0.1 || echo "$@" >> "$SLURM_STUB/asked"',
    "rfdetr-hf": f'exec {shlex.quote(sys.executable)} -m rfdetr_hf.cli "$@"',
}


@pytest.fixture
def cluster(tmp_path):
    """A folder with the stubs in `bin`, and in it a tiny model, its data, and the options of a run."""
    (tmp_path / "bin").mkdir()
    for name, text in STUBS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    tiny_model().save_pretrained(tmp_path / "model")
    RFDETRImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "model")
    splits = {name: make_shapes_dataset(count, 64, seed=1) for name, count in (("train", 24), ("validation", 4))}
    DatasetDict(splits).save_to_disk(tmp_path / "data")
    options = {
        "model_name_or_path": str(tmp_path / "model"), "dataset_name": str(tmp_path / "data"), "max_steps": 5000,
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "dataloader_num_workers": 0,
        "logging_steps": 1, "save_strategy": "steps", "save_steps": 5000, "eval_strategy": "no", "multi_scale": "off",
        "resolution": 64,
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(options))
    return tmp_path


def submit(cluster, launcher, *words):
    """Start the script as Slurm does, on a node with two devices, which are the processor."""
    path = os.pathsep.join([str(cluster / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    slurm = {
        "SLURM_JOB_ID": str(free_port()), "SLURM_JOB_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "2",
        "SLURM_JOB_NODELIST": "node", "SLURM_STUB": str(cluster), "LAUNCHER": launcher, "PATH": path,
    }  # fmt: skip
    words = [
        "bash",
        str(PLATFORMS / "slurm.sbatch"),
        str(cluster / "run"),
        "--config",
        str(cluster / "run.yaml"),
        *words,
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    return slurm["SLURM_JOB_ID"], subprocess.Popen(words, env=environment(**slurm), **pipes)


def wait_for_steps(run, job, seconds=150):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and job.poll() is None:
        if (run / "metrics.csv").exists() and len((run / "metrics.csv").read_text().splitlines()) > 1:
            return
        time.sleep(0.1)
    raise AssertionError(f"no training began: {job.poll()}")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_a_preempted_job_goes_back_into_the_queue_and_finishes(cluster, launcher):
    number, job = submit(cluster, launcher)
    try:
        wait_for_steps(cluster / "run", job)
        os.kill(int((cluster / "srun.pid").read_text()), signal.SIGTERM)  # what srun passes on
        job.send_signal(signal.SIGTERM)  # as the preemption of a complete job does
        output, _ = job.communicate(timeout=200)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert (cluster / "asked").read_text().split() == ["requeue", number], output[-4000:]
    (checkpoint,) = (cluster / "run").glob("checkpoint-*")
    last = int(checkpoint.name.split("-")[1]) + 2
    _, job = submit(cluster, launcher, "--max_steps", str(last))
    output, _ = job.communicate(timeout=200)
    assert job.returncode == 0 and f"resumed from {checkpoint}" in output, output[-4000:]
    assert (cluster / "run" / "last" / "model.safetensors").is_file()
    assert (cluster / "asked").read_text().count("requeue") == 1
    _, job = submit(cluster, launcher, "--learning_rate", "none")
    output, _ = job.communicate(timeout=200)
    assert job.returncode == 0, "the run of before has finished: its status stays"


def test_what_fails_is_not_queued_again(cluster):
    """A launcher that fails at once leaves no run folder."""
    (cluster / "bin" / "torchrun").write_text("#!/bin/bash\nexit 1\n")
    (cluster / "bin" / "torchrun").chmod(0o755)
    _, job = submit(cluster, "torchrun")
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 1 and not (cluster / "asked").exists(), output
    assert "no training has begun there" in output


def test_the_job_of_kubernetes_calls_the_command_as_it_is(tmp_path):
    service, job = yaml.safe_load_all((PLATFORMS / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    words = container["args"]
    parse = words[words.index("fit") + 1 :]
    (tmp_path / "run.yaml").write_text("max_steps: 3\n")
    parsed = parse_arguments(TYPES, [word.replace("/data/run.yaml", f"{tmp_path}/run.yaml") for word in parse])
    training = next(each for each in parsed if isinstance(each, RFDETRTrainingArguments))
    assert (training.output_dir, training.resume_from_checkpoint) == ("/runs/mine", "auto")
    options = dict(word.removeprefix("--").split("=", 1) for word in words[: words.index("-m")])
    assert int(options["nnodes"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert int(options["nproc_per_node"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert options["rdzv_endpoint"].startswith(f"{job['metadata']['name']}-0.{service['metadata']['name']}:")
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == job["spec"]["template"]["metadata"]["labels"]
    claimed = {mount["name"] for mount in container["volumeMounts"]}
    assert claimed == {volume["name"] for volume in pod["volumes"]}
    from torch.distributed.run import get_args_parser

    get_args_parser().parse_args([*words[: words.index("-m")], "-m", "rfdetr_hf.cli"])


def test_the_image_is_built_of_files_that_are_there():
    lines = (PLATFORMS / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    known = {"ARG", "FROM", "ENV", "RUN", "COPY", "WORKDIR", "ENTRYPOINT", "CMD"}
    assert {line.split()[0] for line in lines if line.strip() and not line.startswith("#")} == known
    arguments = re.findall(r"^ARG (\w+)", "\n".join(lines), re.M)
    used = re.findall(r"\$\{?(\w+)", "\n".join(line for line in lines if not line.startswith(("#", "ARG"))))
    assert set(arguments) <= set(used), "an argument without a use"
    extras = re.search(r"^ARG EXTRAS=(.*)$", "\n".join(lines), re.M)
    assert extras and all(f"\n{name} = [" in (ROOT / "pyproject.toml").read_text() for name in extras[1].split(","))


def test_the_job_script_is_valid_bash():
    subprocess.run(["bash", "-n", str(PLATFORMS / "slurm.sbatch")], check=True)
    directives = re.findall(r"^#SBATCH --(\S+)", (PLATFORMS / "slurm.sbatch").read_text(), re.M)
    assert "requeue" in directives and "signal=TERM@120" in directives
