import pytest

from rfdetr_hf import resume_hint
from rfdetr_hf.training import launching
from rfdetr_hf.training.preemption import Preempted


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (["--config", "a.yaml", "--resume"], ["--config", "a.yaml"]),
        (["--resume", "true", "--bf16"], ["--bf16"]),
        (["--resume_from_checkpoint=out/checkpoint-3", "--bf16", "true"], ["--bf16", "true"]),
        (["--hub_token", "hf_secret", "--bf16"], ["--bf16"]),
        (["--hub_token=hf_secret", "--push_to_hub"], ["--push_to_hub"]),
        (["--hub-token", "hf_secret", "--bf16"], ["--bf16"]),
        (
            ["--tracker_kwargs", '{"wandb": {"api_key": "hf_secret", "entity": "us"}}'],
            ["--tracker_kwargs", """'{"wandb": {"api_key": null, "entity": "us"}}'"""],
        ),
        (
            ["--tracker_kwargs={wandb: {host: 'https://me:hf_secret@host'}}"],
            ["""'--tracker_kwargs={"wandb": {"host": "https://host"}}'"""],
        ),
        (["--tracker_kwargs={wandb: {entity: us}}"], ["'--tracker_kwargs={wandb: {entity: us}}'"]),
        (
            ["--rename_classes", '{"key": "door key", "token": "coin"}', "--bf16"],
            ["--rename_classes", """'{"key": "door key", "token": "coin"}'""", "--bf16"],
        ),
        (["--rename-classes={key: lock}", "--bf16"], ["'--rename-classes={key: lock}'", "--bf16"]),
        (
            ["--sources={a: {name_or_path: 'https://me:hf_secret@host', classes: {password: key}}, key: 0.5}"],
            ["""'--sources={"a": {"name_or_path": "https://host", "classes": {"password": "key"}}, "key": 0.5}'"""],
        ),
        (
            ["--keypoint_schema={classes: [{names: [key]}], key: 1}"],
            ["'--keypoint_schema={classes: [{names: [key]}], key: 1}'"],
        ),
        (["--resume-from-checkpoint", "out/checkpoint-3"], []),
    ],
)
@pytest.mark.parametrize("end", [KeyboardInterrupt, Preempted])
def test_the_hint_of_an_interrupted_run_leaves_out_earlier_resumes_and_secrets(monkeypatch, capsys, given, left, end):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(launching, "words_of", lambda pid: [])
    monkeypatch.setattr(launching.RunDirectory, "newest", lambda self: self.root / "checkpoint-3")
    with pytest.raises(end), resume_hint("out", given, ["rfdetr-hf", "fit"]):
        raise end
    out = capsys.readouterr().out
    assert out.splitlines()[1:] == [
        "out/checkpoint-3 is complete. Go on from there with:", "  " + " ".join(["rfdetr-hf fit", *left, "--resume"])
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("parent", "expected"),
    [
        (["bash"], ["rfdetr-hf", "fit"]),
        (["python", "/bin/accelerate", "launch", "-m", "rfdetr_hf.cli", "fit", "--bf16"],
         ["accelerate", "launch", "-m", "rfdetr_hf.cli", "fit"]),
        (["python", "-m", "torch.distributed.run", "train.py", "--bf16"],
         ["python", "-m", "torch.distributed.run", "train.py"]),
        (["torchrun", "other.py"], ["rfdetr-hf", "fit"]),
    ],
)  # fmt: skip
def test_the_words_of_a_launcher_come_from_its_command_line(monkeypatch, parent, expected):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(launching, "words_of", lambda pid: parent)
    assert launching.started_with(["rfdetr-hf", "fit"], ["--bf16"]) == expected


def test_without_a_command_line_the_number_of_processes_is_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(launching, "words_of", lambda pid: [])
    head = ["accelerate", "launch", "--num_processes", "4"]
    assert launching.started_with(["rfdetr-hf", "fit"], []) == [*head, "-m", "rfdetr_hf.cli", "fit"]
    assert launching.started_with(["python", "train.py"], []) == [*head, "train.py"]
