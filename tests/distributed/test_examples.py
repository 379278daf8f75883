"""The files of examples/accelerate: Accelerate knows every key, and a training runs under each."""

from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from launching import accelerate_launch, finish
from test_topologies import needs_deepspeed

FILES = sorted(Path(__file__).parents[2].glob("examples/accelerate/*.yaml"))
SHORT = {"max_steps": 1, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}


def launches():
    """Each file with a detector; the one that splits the model by its layers with another model as well."""
    for file in FILES:
        marks = [] if file.stem == "fsdp2" else [pytest.mark.slow]
        marks += [needs_deepspeed] if file.stem.startswith("zero") else []
        for task in ("detection", "keypoints") if file.stem == "fsdp2" else ("detection",):
            own = [pytest.mark.slow] if file.stem == "fsdp2" and task == "detection" else []
            yield pytest.param(file, task, marks=[*marks, *own], id=f"{file.stem}-{task}")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_key_is_one_of_the_launcher(file):
    config = load_config_from_file(str(file))
    known = vars(launch_command_parser().parse_args(["train.py"]))
    unknown = [key for key in (*config.fsdp_config, *config.deepspeed_config) if key not in known]
    assert unknown == []


@pytest.mark.parametrize(("file", "task"), [case for case in launches() if case.values[0].stem != "single"])
def test_two_processes_train_with_each_file(job, file, task, tmp_path, tiny_config):
    if task == "keypoints":
        tiny_config(num_keypoints_per_class=[1, 4, 3]).save_pretrained(tmp_path / "config")
    short = job(task, task=task, options=SHORT, fsdp_on_cpu=file.stem == "fsdp2")
    codes, outputs = finish(accelerate_launch(file, short, nodes=2 if file.stem == "multi_node" else 1))
    assert set(codes) == {0}, "\n".join(outputs)[-6000:]
    assert (tmp_path / task / "last" / "model.safetensors").is_file()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["fsdp2", pytest.param("zero2", marks=needs_deepspeed)])
def test_one_gpu_trains_with_sharding(job, name, tmp_path):
    file = next(file for file in FILES if file.stem == name)
    options = SHORT | {"max_steps": 3, "bf16": True, "save_strategy": "steps", "save_steps": 3}
    codes, outputs = finish(accelerate_launch(file, job("gpu", options=options), processes=1, device="cuda"))
    assert codes == [0], outputs[0][-6000:]
    assert (tmp_path / "gpu" / "checkpoint-3" / "manifest.json").is_file()
