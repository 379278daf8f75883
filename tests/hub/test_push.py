import json
import logging
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from helpers.runs import quick_arguments
from huggingface_hub import HfApi
from safetensors.torch import load_file
from transformers import AutoModelForObjectDetection, TrainerCallback

from rfdetr_hf import (
    RFDETRForObjectDetection,
    RFDETRImageProcessor,
    RFDETRTrainer,
)
from rfdetr_hf.hub.push import HubUploader, fetch_checkpoint

from .fake_hub import TOKEN, USER

SHAPES = 8  # images of the fixture `shapes`


arguments = partial(
    quick_arguments, num_train_epochs=2, gradient_accumulation_steps=1, logging_steps=2, push_to_hub=True,
    hub_token=TOKEN, save_total_limit=1,
)  # fmt: skip


def quick(trainer):
    trainer.hub.delay = 0.01
    return trainer


def folder_with(path, **files):
    path.mkdir()
    for name, text in files.items():
        (path / name).write_text(text)
    return path


MODEL_FOLDER = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}


@pytest.mark.parametrize(
    ("strategy", "async_save", "commits", "checkpoints"),
    [
        ("end", False, 1, set()),
        ("every_save", False, None, set()),
        ("checkpoint", False, None, {"last-checkpoint"}),
        ("all_checkpoints", False, 5, {"checkpoint-5", "checkpoint-10"}),
        ("all_checkpoints", True, 5, {"checkpoint-5", "checkpoint-10"}),
    ],
)
def test_strategies(tmp_path, hub, tiny_model, shapes, strategy, async_save, commits, checkpoints):
    args = arguments(tmp_path / "run", hub_strategy=strategy, hub_model_id="mine", async_save=async_save)
    RFDETRTrainer(tiny_model(), args, shapes, shapes).train()
    repo = hub.repos[f"{USER}/mine"]
    assert {name for name in repo.files if "/" not in name} - {"curves.png"} == MODEL_FOLDER
    assert {name.split("/")[0] for name in repo.files if "/" in name} == checkpoints
    assert commits is None or len(repo.commits) == commits
    assert repo.commits[-1][1] == "End of training"
    on_the_way = [message for _, message, *_ in repo.commits if message.startswith("Training in progress")]
    assert bool(on_the_way) == (strategy != "end")
    for name in checkpoints:
        assert f"{name}/manifest.json" in repo.files and f"{name}/ema.safetensors" in repo.files
    assert repo.files["model.safetensors"] == (tmp_path / "run" / "best" / "model.safetensors").read_bytes()
    assert not list((tmp_path / "run").glob(".del-*"))


def test_a_users_folder_with_the_name_of_a_checkpoint_is_not_uploaded(tmp_path, hub, tiny_model, shapes):
    args = arguments(tmp_path / "run", hub_strategy="checkpoint", hub_model_id="mine", num_train_epochs=1)
    trainer = RFDETRTrainer(tiny_model(), args, shapes, shapes, callbacks=[CopyBesideTheRun(tmp_path / "run")])
    trainer.train()
    files = hub.repos[f"{USER}/mine"].files
    assert "last-checkpoint/manifest.json" in files and "last-checkpoint/mine.txt" not in files


class CopyBesideTheRun(TrainerCallback):
    """Puts aside what a user would: folders that are named like checkpoints, between training and upload."""

    def __init__(self, root):
        self.root = root

    def on_epoch_end(self, args, state, control, **kwargs):
        for name in ("checkpoint-old", "checkpoint-900"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
            (self.root / name / "mine.txt").write_text("mine")


def test_the_pushed_model_is_loaded_back_by_us_and_by_plain_transformers(tmp_path, hub, tiny_model, shapes):
    args = arguments(tmp_path / "run", hub_strategy="end", hub_model_id="tester/mine", eval_strategy="no")
    trainer = RFDETRTrainer(tiny_model(), args, shapes)
    trainer.train()
    ours = RFDETRForObjectDetection.from_pretrained("tester/mine").eval()
    theirs = AutoModelForObjectDetection.from_pretrained("tester/mine").eval()
    processor = RFDETRImageProcessor.from_pretrained("tester/mine")
    assert processor.size == trainer.image_processor.size
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = trainer.model.eval()(pixels).logits
        torch.testing.assert_close(ours(pixels).logits, expected)
        torch.testing.assert_close(theirs(pixels).logits, expected, rtol=0, atol=1e-4)


def test_model_and_processor_push_themselves(hub, tiny_model, tmp_path):
    model = tiny_model()
    model.push_to_hub("tester/alone", token=TOKEN)
    RFDETRImageProcessor(size={"height": 64, "width": 64}).push_to_hub("tester/alone", token=TOKEN)
    again = RFDETRForObjectDetection.from_pretrained("tester/alone")
    assert torch.equal(again.state_dict()["class_embed.weight"], model.state_dict()["class_embed.weight"])
    assert RFDETRImageProcessor.from_pretrained("tester/alone").size["height"] == 64


def test_a_hub_that_is_down_ends_no_training(tmp_path, hub, tiny_model, shapes, caplog):
    hub.fail("/api/repos/create", 500, times=1000)
    args = arguments(tmp_path / "run", hub_model_id="mine")
    trainer = quick(RFDETRTrainer(tiny_model(), args, shapes, shapes))
    with caplog.at_level(logging.WARNING, logger="rfdetr_hf"):
        result = trainer.train()
    assert result.global_step == 8 or result.global_step == 10
    assert trainer.hub.failures and trainer.hub.failures[-1].startswith("End of training: ")
    assert sum("attempt 1 of 4" in m for m in caplog.messages) >= 1
    assert any("failed, the run goes on" in m and "push_to_hub() tries again" in m for m in caplog.messages)
    hub.failures.clear()
    url = trainer.push_to_hub("Second try")
    assert url.startswith(f"{hub.url}/tester/mine/commit/")
    assert set(hub.repos["tester/mine"].files) - {"curves.png"} == MODEL_FOLDER


def test_what_fails_for_a_while_is_tried_again(tmp_path, hub):
    hub.fail("/commit/", 500, times=2)
    uploader = HubUploader("mine", TOKEN, delay=0.01)
    uploader.submit(folder_with(tmp_path / "a", config="1"), "first")
    uploader.wait()
    assert uploader.failures == []
    assert hub.repos["tester/mine"].files == {"config": b"1"}


def test_what_the_hub_refuses_is_not_tried_again(tmp_path, hub):
    uploader = HubUploader("mine", "hf_wrong", delay=30)
    uploader.submit(folder_with(tmp_path / "a", config="1"), "first")
    uploader.wait()
    assert len(uploader.failures) == 1 and "401" in uploader.failures[0]
    assert hub.requests.count("POST /api/repos/create") == 1


def test_what_is_submitted_may_be_deleted_at_once(tmp_path, hub):
    hub.delay = 0.05
    uploader = HubUploader("mine", TOKEN)
    folder = folder_with(tmp_path / "a", config="1", manifest="2")
    uploader.submit(folder, "first", "checkpoint-1")
    for file in folder.iterdir():
        file.unlink()
    uploader.wait()
    assert hub.repos["tester/mine"].files == {"checkpoint-1/config": b"1", "checkpoint-1/manifest": b"2"}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".del")] == []


def test_waiting_uploads_can_be_dropped(tmp_path, hub):
    hub.delay = 0.1
    uploader = HubUploader("mine", TOKEN)
    for number in range(4):
        uploader.submit(folder_with(tmp_path / f"a{number}", config=str(number)), f"number {number}")
    uploader.drop_waiting()
    uploader.submit(folder_with(tmp_path / "last", config="last"), "the last")
    uploader.wait()
    messages = [message for _, message, _ in hub.repos["tester/mine"].commits]
    assert messages[-1] == "the last" and len(messages) <= 2


def test_a_private_repository(tmp_path, hub):
    HubUploader("mine", TOKEN, private=True).push(folder_with(tmp_path / "a", config="1"), "first")
    assert hub.repos["tester/mine"].private


def test_a_push_that_fails_says_so(tmp_path, hub):
    hub.fail("/commit/", 403)
    with pytest.raises(Exception, match="403"):
        HubUploader("mine", TOKEN, delay=0.01).push(folder_with(tmp_path / "a", config="1"), "first")


def test_on_push_begin_is_fired(tmp_path, hub, tiny_model, shapes):
    events = []

    class Recorder(TrainerCallback):
        def on_push_begin(self, args, state, control, model=None, **kwargs):
            events.append((state.global_step, model is not None))

    args = arguments(tmp_path / "run", hub_model_id="mine", max_steps=2, eval_strategy="no", save_strategy="steps",
                     save_steps=1)  # fmt: skip
    trainer = RFDETRTrainer(tiny_model(), args, shapes, callbacks=[Recorder()])
    trainer.train()
    assert events == [(1, True), (2, True), (2, True)]
    trainer.push_to_hub(blocking=False)
    trainer.hub.wait()
    assert len(events) == 4
    assert hub.repos["tester/mine"].commits[-1][1] == "End of training"


@pytest.mark.parametrize("source", ["tester/mine", "tester/mine/last-checkpoint"])
def test_a_run_resumed_from_the_hub_ends_with_the_same_bits(tmp_path, hub, tiny_model, shapes, source):
    options = {"hub_model_id": "mine", "save_strategy": "steps", "save_steps": 3}

    class Cut(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 7:
                raise KeyboardInterrupt

    RFDETRTrainer(tiny_model(), arguments(tmp_path / "whole", push_to_hub=False, **options), shapes, shapes).train()
    args = arguments(tmp_path / "cut", hub_strategy="checkpoint", **options)
    first = RFDETRTrainer(tiny_model(), args, shapes, shapes, callbacks=[Cut()])
    with pytest.raises(KeyboardInterrupt):
        first.train()
    first.hub.wait()
    args = arguments(tmp_path / "elsewhere", push_to_hub=False, **options)
    resumed = RFDETRTrainer(tiny_model(seed=3), args, shapes, shapes)
    resumed.train(resume_from_checkpoint=source)
    one, other = (load_file(tmp_path / run / "last" / "model.safetensors") for run in ("whole", "elsewhere"))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_broken_download_is_refused(tmp_path, hub, tiny_model, shapes):
    args = arguments(tmp_path / "run", hub_strategy="checkpoint", hub_model_id="mine", eval_strategy="no", max_steps=1)
    RFDETRTrainer(tiny_model(), args, shapes).train()
    hub.repos["tester/mine"].files["last-checkpoint/ema.safetensors"] += b"x"
    again = RFDETRTrainer(tiny_model(), arguments(tmp_path / "again", eval_strategy="no"), shapes)
    with pytest.raises(ValueError, match=r"ema\.safetensors has \d+ bytes instead of"):
        again.train(resume_from_checkpoint="tester/mine")


def test_the_newest_checkpoint_of_a_repository(tmp_path, hub):
    uploader = HubUploader("mine", TOKEN)
    for step in (9, 10, 1):
        uploader.push(folder_with(tmp_path / str(step), **{"manifest.json": str(step)}), "x", f"checkpoint-{step}")
    assert fetch_checkpoint("tester/mine").endswith("/checkpoint-10")
    assert fetch_checkpoint("tester/mine/checkpoint-9").endswith("/checkpoint-9")
    sha = HfApi(token=TOKEN).repo_info("tester/mine").sha
    assert fetch_checkpoint(f"tester/mine@{sha}").endswith("/checkpoint-10")


def test_the_newest_checkpoint_is_of_the_line_that_was_saved_last(tmp_path, hub, tiny_model, shapes):
    """Before, it was the highest number, which a rewind had left behind."""
    options = dict(hub_model_id="mine", eval_strategy="no", save_strategy="steps", save_steps=1, save_total_limit=None)
    here = tmp_path / "run"
    for steps, resume in ((3, None), (2, str(here / "checkpoint-1"))):
        args = arguments(here, max_steps=steps, hub_strategy="all_checkpoints", **options)
        RFDETRTrainer(tiny_model(), args, shapes).train(resume_from_checkpoint=resume)
    assert {name.split("/")[0] for name in hub.repos["tester/mine"].files} >= {"checkpoint-2", "checkpoint-3"}
    assert fetch_checkpoint("tester/mine").endswith("/checkpoint-2")
    # A later upload under another strategy counts likewise.
    HubUploader("mine", TOKEN).push(next(here.glob("set-aside/*/checkpoint-3")), "x", "last-checkpoint")
    assert fetch_checkpoint("tester/mine").endswith("/checkpoint-2")
    HubUploader("mine", TOKEN).push(here / "checkpoint-2", "x", "last-checkpoint")
    fetched = Path(fetch_checkpoint("tester/mine"))
    assert json.loads((fetched / "manifest.json").read_text())["step"] == 2


def test_the_last_checkpoint_on_the_hub_has_no_file_of_one_before(tmp_path, hub, tiny_model, shapes):
    """Before, the average of the first run made the checkpoint of the second one unusable."""
    options = dict(hub_model_id="mine", hub_strategy="checkpoint", eval_strategy="no")
    args = arguments(tmp_path / "run", max_steps=1, **options)
    RFDETRTrainer(tiny_model(), args, shapes).train()
    repo = hub.repos["tester/mine"]
    assert "last-checkpoint/ema.safetensors" in repo.files
    args = arguments(tmp_path / "run", max_steps=2, use_ema=False, **options)
    RFDETRTrainer(tiny_model(), args, shapes).train(resume_from_checkpoint=True)
    here = {p.relative_to(tmp_path / "run/checkpoint-2") for p in (tmp_path / "run/checkpoint-2").rglob("*.*")}
    there = {Path(name).relative_to("last-checkpoint") for name in repo.files if name.startswith("last-checkpoint/")}
    assert there == here and {"config.json", "model.safetensors"} <= set(repo.files)
    args = arguments(tmp_path / "elsewhere", max_steps=3, use_ema=False, eval_strategy="no", push_to_hub=False)
    trainer = RFDETRTrainer(tiny_model(), args, shapes)
    assert trainer.train(resume_from_checkpoint="tester/mine").global_step == 3


def test_a_model_is_no_checkpoint(tmp_path, hub, tiny_model, shapes):
    """A repository of a model, and the folder that its download makes: neither has a manifest."""
    tiny_model().save_pretrained(tmp_path / "model")
    HubUploader("mine", TOKEN).push(tmp_path / "model", "first")
    trainer = RFDETRTrainer(tiny_model(), arguments(tmp_path / "run", push_to_hub=False, eval_strategy="no"), shapes)
    for resume in ("tester/mine", str(tmp_path / "model")):
        with pytest.raises((ValueError, FileNotFoundError), match=f"is a model.*model_name_or_path={resume}"):
            trainer.train(resume_from_checkpoint=resume)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tester/none", "no folder here, and cannot be fetched"),
        ("tester/mine", "holds no checkpoint"),
        ("tester/mine/checkpoint-5", "no folder checkpoint-5"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, hub, name, message):
    HubUploader("mine", TOKEN).push(folder_with(tmp_path / "a", config="1"), "first")
    with pytest.raises(FileNotFoundError, match=message):
        fetch_checkpoint(name)


def test_what_is_no_hub_name_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "user" / "repo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for value in (None, True, False, "true", "user/repo", "/some/where/checkpoint-5", "a/b/c/checkpoint-5"):
        assert fetch_checkpoint(value) == value


def test_the_token_is_saved_nowhere(tmp_path, hub, tiny_model, shapes):
    args = arguments(tmp_path / "run", hub_strategy="checkpoint", hub_model_id="mine", max_steps=1)
    RFDETRTrainer(tiny_model(), args, shapes, shapes).train()
    files = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert len(files) > 10
    assert [p.name for p in files if TOKEN.encode() in p.read_bytes()] == []
    assert yaml.safe_load((tmp_path / "run" / "args.yaml").read_text())["hub_token"] is None


@pytest.mark.parametrize(("name", "push"), [("user/my--model", True), ("user/my model", False), ("a/b/c", False)])
def test_a_name_that_no_repository_can_have_is_refused_at_once(tmp_path, tiny_model, shapes, name, push):
    args = arguments(tmp_path / "run", hub_model_id=name, push_to_hub=push)
    with pytest.raises(ValueError, match=f"no repository '{name}'.*hub_model_id"):
        RFDETRTrainer(tiny_model(), args, shapes, shapes)


def test_what_is_known_to_hinder_uploads_is_said_before_and_after(
    tmp_path, hub, tiny_model, shapes, caplog, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    args = arguments(tmp_path / "my run", hub_model_id="me/mine", max_steps=2, save_strategy="steps", save_steps=1)
    trainer = RFDETRTrainer(tiny_model(), args, shapes, shapes)
    trainer.train()
    folder = tmp_path / "my run" / "best"
    command = f"hf upload me/mine '{folder}'"
    warned, failed = (message for message in caplog.messages if "hf upload" in message)
    assert "HF_HUB_OFFLINE is set, so nothing can be uploaded to me/mine" in warned and command in warned
    assert "upload 'End of training' to me/mine failed, the run goes on: HF_HUB_OFFLINE is set." in failed
    assert f"The files are in {folder}; to upload them later: {command}" in failed
    assert len(trainer.hub.failures) == 1 and not hub.requests
    with pytest.raises(PermissionError, match="HF_HUB_OFFLINE is set"):
        trainer.push_to_hub()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert HubUploader("mine").obstacle() == "there is no login (hf auth login)"
    assert HubUploader("mine", TOKEN).obstacle() is None
