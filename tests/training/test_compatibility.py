"""What scripts and callbacks written for the Trainer of Transformers find here."""

import copy
import re
import types

import pytest
import torch
import transformers
from accelerate import Accelerator, cpu_offload
from datasets import DatasetDict
from helpers.runs import metrics_rows, quick_arguments
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from rfdetr_hf import RFDETRImageProcessor, RFDETRTrainer, RFDETRTrainingArguments
from rfdetr_hf.training.checkpoint.lock import RunInUse, RunLock
from rfdetr_hf.training.finetuning import in_float32

SHAPES = 8  # images of the fixture `shapes`

SHORT = {"max_steps": 2, "gradient_accumulation_steps": 1, "eval_strategy": "no", "save_strategy": "no"}


def test_the_end_of_a_training_is_logged_and_returned_with_its_speeds(tmp_path, tiny_model, shapes):
    class Last(TrainerCallback):
        logs: dict = {}

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.logs = dict(logs)

    last = Last()
    output = RFDETRTrainer(tiny_model(), quick_arguments(tmp_path, **SHORT), shapes, callbacks=[last]).train()
    names = {"train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second", "epoch"}
    assert names <= output.metrics.keys() and names <= last.logs.keys()
    assert output.metrics["train_loss"] == output.training_loss > 0
    seconds = output.metrics["train_runtime"]
    assert output.metrics["train_samples_per_second"] == pytest.approx(2 * 2 / seconds)
    assert output.metrics["train_steps_per_second"] == pytest.approx(2 / seconds)
    assert output.metrics["epoch"] == 0.4
    assert not any(name.startswith("train_") for name in metrics_rows(tmp_path)[0])
    assert "| end after 0:00:" in (tmp_path / "train.log").read_text()


def test_an_evaluation_gives_its_speeds(tmp_path, tiny_model, shapes):
    metrics = RFDETRTrainer(tiny_model(), quick_arguments(tmp_path, **SHORT), eval_dataset=shapes).evaluate()
    assert metrics["eval_samples_per_second"] == pytest.approx(8 / metrics["eval_runtime"])
    assert metrics["eval_steps_per_second"] == pytest.approx(4 / metrics["eval_runtime"])


def test_several_evaluation_sets_have_names(tmp_path, tiny_model, shapes):
    sets = {"day": shapes.select(range(2)), "night": shapes.select(range(2, 6))}
    args = quick_arguments(tmp_path, **SHORT | {"eval_strategy": "steps", "eval_steps": 1})
    trainer = RFDETRTrainer(tiny_model(), args, shapes, sets, test_dataset=shapes.select(range(3)))
    assert trainer.args.metric_for_best_model == "day_map" and args.metric_for_best_model is None
    trainer.train()
    rows = [row for row in trainer.state.log_history if "eval_night_map" in row]
    assert len(rows) == 2 and trainer.state.best_global_step in (1, 2)
    page = (tmp_path / "report.html").read_text()
    assert re.search(r"best model.*<th[^>]*>day.*<th[^>]*>night.*<th[^>]*>test.*AP50", page, re.DOTALL)
    assert {"eval_day_map", "eval_night_map"} <= trainer.evaluate().keys()
    assert len(trainer.get_eval_dataloader("night").dataset) == 4
    with pytest.raises(ValueError, match="metric_for_best_model='map' is in no evaluation of this run; did you mean"):
        RFDETRTrainer(tiny_model(), quick_arguments(tmp_path, metric_for_best_model="map"), shapes, sets)
    with pytest.raises(ValueError, match="the classes of eval_day_dataset"):
        RFDETRTrainer(tiny_model(names="abc"), quick_arguments(tmp_path, **SHORT), eval_dataset=sets)


def test_loaders_without_arguments(tmp_path, tiny_model, shapes):
    trainer = RFDETRTrainer(
        tiny_model(), quick_arguments(tmp_path), eval_dataset=shapes, test_dataset=shapes.select(range(3))
    )
    assert trainer.num_examples(trainer.get_eval_dataloader()) == 8
    assert trainer.num_examples(trainer.get_test_dataloader()) == 3
    assert len(trainer.get_test_dataloader(shapes.select(range(2))).dataset) == 2
    nothing = RFDETRTrainer(tiny_model(), quick_arguments(tmp_path, **SHORT))
    with pytest.raises(ValueError, match="get_eval_dataloader"):
        nothing.get_eval_dataloader()
    with pytest.raises(ValueError, match="needs a test_dataset"):
        nothing.get_test_dataloader()


def test_processing_class_and_model_init(tmp_path, tiny_model, shapes):
    processor = RFDETRImageProcessor(size={"height": 64, "width": 64}, image_mean=[0.1, 0.2, 0.3])
    args = quick_arguments(tmp_path, **SHORT, seed=5)

    def make():
        return tiny_model(seed=torch.initial_seed() % 1000)

    trainer = RFDETRTrainer(args=args, model_init=make, processing_class=processor, train_dataset=shapes)
    assert trainer.processing_class is trainer.image_processor is processor
    expected = tiny_model(seed=5).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in trainer.model.state_dict().items())
    with pytest.raises(TypeError, match="model and model_init exclude each other"):
        RFDETRTrainer(tiny_model(), args, model_init=make)


def test_an_optimizer_and_a_schedule_of_the_user(tmp_path, tiny_model, shapes):
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    args = quick_arguments(tmp_path, **SHORT | {"max_steps": 3}, logging_steps=1)
    trainer = RFDETRTrainer(model, args, shapes, optimizers=(optimizer, schedule))
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, torch.optim.SGD) and trainer.lr_scheduler is schedule
    rates = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    assert rates == [0.25, 0.125, 0.0625]
    assert trainer.get_learning_rates() == [0.03125]
    assert trainer.get_num_trainable_parameters() == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("first", ["none", "other"])
def test_a_schedule_of_another_optimizer_is_refused_at_construction(tmp_path, tiny_model, shapes, first):
    model = tiny_model()
    mine, other = (torch.optim.SGD(model.parameters(), lr=0.25) for _ in range(2))
    schedule = torch.optim.lr_scheduler.ConstantLR(other)
    given = (None if first == "none" else mine, schedule)
    with pytest.raises(ValueError, match="ConstantLR changes the rates of another optimizer"):
        RFDETRTrainer(model, quick_arguments(tmp_path, **SHORT), shapes, optimizers=given)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(mine)
    with pytest.raises(ValueError, match="ReduceLROnPlateau waits for a score"):
        RFDETRTrainer(model, quick_arguments(tmp_path, **SHORT), shapes, optimizers=(mine, plateau))
    assert RFDETRTrainer(model, quick_arguments(tmp_path, **SHORT), shapes, optimizers=(mine, None)).args


def test_what_is_no_made_optimizer_is_refused_at_construction(tmp_path, tiny_model, shapes):
    model = tiny_model()
    mine = torch.optim.SGD(model.parameters(), lr=0.25)
    for given, message in (
        (None, "optimizers is a NoneType: give"),
        ((torch.optim.AdamW, None), "AdamW.* is not an optimizer; give one that is made"),
        ((lambda parameters: mine, None), "is not an optimizer"),
        ((mine, torch.optim.lr_scheduler.ConstantLR), "ConstantLR.* is not a schedule"),
        ((torch.optim.LBFGS(model.parameters()), None), "the step of LBFGS computes the loss anew"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            RFDETRTrainer(model, quick_arguments(tmp_path, **SHORT), shapes, optimizers=given)
    schedule = torch.optim.lr_scheduler.LambdaLR(mine, lambda step: 1.0)
    for given in ([None, None], (mine, schedule), (torch.optim.Adafactor(model.parameters()), None)):
        assert RFDETRTrainer(model, quick_arguments(tmp_path, **SHORT), shapes, optimizers=given).args


def test_model_init_of_a_trial_and_log_with_a_start_time(tmp_path, tiny_model, shapes):
    """As Transformers calls them."""
    trials = []

    def of_a_trial(trial):
        trials.append(trial)
        return tiny_model(seed=3)

    args = quick_arguments(tmp_path, **SHORT)
    trainer = RFDETRTrainer(args=args, model_init=of_a_trial, train_dataset=shapes)
    trainer.log({"mine": 1.0}, 0.0)
    assert trials == [None] and trainer.state.log_history[-1]["mine"] == 1.0
    for init in (lambda seed=3: tiny_model(seed=seed), lambda *rest, **more: tiny_model(seed=len(rest) + len(more))):
        assert RFDETRTrainer(args=args, model_init=init, train_dataset=shapes).model
    with pytest.raises(TypeError, match="model_init needs trial, size: give a function"):
        RFDETRTrainer(args=args, model_init=lambda trial, size: tiny_model(), train_dataset=shapes)


def test_an_option_without_effect_is_named_once(tmp_path, tiny_model, shapes, caplog):
    args = quick_arguments(tmp_path, max_steps=1, save_strategy="no", eval_strategy="no", save_steps=4)
    RFDETRTrainer(tiny_model(), args, shapes).train()
    assert sum("save_steps=4 has no effect" in text for text in caplog.messages) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [({"callbacks": TrainerCallback()}, "callbacks is a TrainerCallback: give a list"),
     ({"compute_metrics": {"a": 1}}, "compute_metrics is a dict: give a function"),
     ({"optimizers": torch.optim.SGD([torch.zeros(1)], lr=1)}, "optimizers is a SGD: give .optimizer, scheduler."),
     ({"image_processor": RFDETRImageProcessor(), "processing_class": RFDETRImageProcessor()}, "two names of one")],
)  # fmt: skip
def test_single_things_and_two_processors_get_a_sentence(tmp_path, tiny_model, shapes, given, message):
    with pytest.raises(TypeError, match=message):
        RFDETRTrainer(tiny_model(), quick_arguments(tmp_path, **SHORT), shapes, **given)


@pytest.mark.parametrize("dataset", [None, "a folder", {"a": 1}])
def test_what_predict_cannot_take_gets_a_sentence(tmp_path, tiny_model, shapes, dataset):
    trainer = RFDETRTrainer(tiny_model(), quick_arguments(tmp_path, **SHORT), shapes)
    with pytest.raises(TypeError, match=r"dataset of predict\(\) is a .*: give"):
        trainer.predict(dataset)


def native(_):
    module = pytest.importorskip("transformers.models.rf_detr.modeling_rf_detr")
    with torch.device("meta"):
        return module.RfDetrForObjectDetection(module.RfDetrConfig())


def quantised(model):
    model.class_embed = torch.ao.nn.quantized.dynamic.Linear(32, 3)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: "Roboflow/rf-detr-nano", r"model is a str: load it, .*from_pretrained\('Roboflow/rf-detr-nano'"),
        (lambda model: None, "model is a NoneType: give a model, or model_init"),
        (native, r"model is a RfDetrForObjectDetection: save it and load the folder, RFDETRForObjectDetection.from_"),
        (torch.compile, "model is a OptimizedModule: give the model itself and set torch_compile=True"),
        (lambda model: torch.nn.Linear(1, 1), "model is a Linear"),
        (torch.nn.DataParallel, r"model is a DataParallel: give the model itself, model\.module"),
        (lambda model: model.config, r"model is a RFDETRConfig: make a model of it, RFDETRForObjectDetection\(config"),
        (type, "model is a type: give a model of this class"),
        (quantised, r"class_embed of the model is quantised.* after the training"),
        (cpu_offload, "the weights of .* are offloaded: load the model without device_map"),
    ],
)
def test_a_model_of_another_kind_gets_a_sentence(tmp_path, tiny_model, make, message):
    with pytest.raises(TypeError, match=message):
        RFDETRTrainer(make(tiny_model()), quick_arguments(tmp_path))


def test_a_parametrised_layer_is_not_taken_for_a_quantised_one(tiny_model):
    model = tiny_model()
    torch.nn.utils.parametrizations.spectral_norm(model.class_embed)
    assert in_float32(model) is model


def test_other_things_of_another_kind_get_a_sentence(tmp_path, tiny_model, shapes):
    model, args = tiny_model(), quick_arguments(tmp_path, **SHORT)
    for given, message in (
        (TrainingArguments(str(tmp_path), report_to="none"), "args is transformers' TrainingArguments: give RFDETRTr"),
        (None, "args is NoneType: give RFDETRTrainingArguments"),
        (str(tmp_path), "args is str"),
    ):
        with pytest.raises(TypeError, match=message):
            RFDETRTrainer(model, given, shapes)
    both = DatasetDict(train=shapes, validation=shapes)
    for data, message in (
        (both, "train_dataset is a DatasetDict of train, validation: give one of them"),
        (shapes.to_iterable_dataset(), r"train_dataset is a IterableDataset: load_detection_dataset\(stream\) reads"),
        (list(shapes), "train_dataset is a list: give a datasets.Dataset"),
        ("synthetic-shapes", "train_dataset is a str"),
    ):
        with pytest.raises(TypeError, match=message):
            RFDETRTrainer(model, args, data)
    with pytest.raises(TypeError, match="the image processor is a SimpleNamespace"):
        RFDETRTrainer(model, args, shapes, processing_class=types.SimpleNamespace())
    with pytest.raises(TypeError, match="eval_dataset is a list"):
        RFDETRTrainer(model, args, eval_dataset=shapes).evaluate(list(shapes))


def test_trainers_of_any_precision_live_in_one_process(tmp_path, tiny_model, shapes):
    one = RFDETRTrainer(tiny_model(), quick_arguments(tmp_path / "one", **SHORT), shapes, shapes)
    other = RFDETRTrainer(tiny_model(), quick_arguments(tmp_path / "two", **SHORT, bf16=True), shapes, shapes)
    for trainer, precision in ((one, "no"), (other, "bf16"), (one, "no")):
        assert trainer.accelerator.mixed_precision == precision
        dtypes = []
        hook = trainer.model.class_embed.register_forward_hook(lambda m, i, out, kept=dtypes: kept.append(out.dtype))
        trainer.evaluate()
        hook.remove()
        assert dtypes[0] == (torch.float32 if precision == "no" else torch.bfloat16)
    other.train()
    one.train()


def test_an_accelerator_of_the_user_keeps_its_precision(tmp_path, tiny_model):
    theirs = Accelerator(mixed_precision="no")
    ours = RFDETRTrainer(tiny_model(), quick_arguments(tmp_path, **SHORT, bf16=True)).accelerator
    assert (theirs.mixed_precision, ours.mixed_precision) == ("no", "bf16")
    assert Accelerator().mixed_precision == "no"


class Counting(TrainerCallback, ExportableState):
    """Keeps what it was made with, and counts steps."""

    def __init__(self, start=0):
        self.count = start

    def on_step_end(self, args, state, control, **kwargs):
        self.count += 1

    def state(self):
        return {"args": {}, "attributes": {"count": self.count}}


def test_callbacks_of_one_class_keep_a_state_each_and_a_lost_one_is_named(tmp_path, tiny_model, shapes, caplog):
    saving = SHORT | {"save_strategy": "steps", "save_steps": 2}
    first = [Counting(10), Counting(20)]
    RFDETRTrainer(tiny_model(), quick_arguments(tmp_path, **saving), shapes, callbacks=first).train()
    again = [Counting(), Counting()]
    args = quick_arguments(tmp_path, **saving | {"max_steps": 3})
    RFDETRTrainer(tiny_model(), args, shapes, callbacks=again).train(resume_from_checkpoint=True)
    assert [callback.count for callback in again] == [13, 23]
    caplog.clear()
    args = quick_arguments(tmp_path, **saving | {"max_steps": 4})
    RFDETRTrainer(tiny_model(), args, shapes, callbacks=[Counting()]).train(resume_from_checkpoint=True)
    assert "the checkpoint has a state of Counting, and this run has no such callback" in caplog.text


def test_another_metric_at_resume_begins_the_comparison_afresh(tmp_path, tiny_model, shapes, caplog):
    counted = []

    def scores(pair):
        counted.append(1)
        return {"a": 100.0, "b": 0.1 * len(counted)}

    def run(steps, metric, **options):
        args = quick_arguments(
            tmp_path, max_steps=steps, gradient_accumulation_steps=1, eval_strategy="steps", eval_steps=1,
            save_strategy="steps", save_steps=1, metric_for_best_model=metric, early_stopping_patience=5,
        )  # fmt: skip
        trainer = RFDETRTrainer(tiny_model(), args, shapes, shapes.select(range(2)), compute_metrics=scores)
        trainer.train(**options)
        return trainer

    assert run(2, "a").state.best_metric == 100.0
    resumed = run(4, "b", resume_from_checkpoint=True)
    assert resumed.state.best_global_step == 4 and resumed.state.best_metric == pytest.approx(0.4)
    assert "the best model is chosen by metric_for_best_model=b" in caplog.text
    early = next(c for c in resumed.callback_handler.callbacks if type(c).__name__ == "EarlyStopping")
    assert early.best == pytest.approx(0.4)


def test_the_worst_model_is_not_kept_when_a_loss_chooses(tmp_path, tiny_model, shapes):
    args = quick_arguments(
        tmp_path, **SHORT | {"max_steps": 9, "eval_strategy": "steps", "eval_steps": 3}, eval_loss=True,
        metric_for_best_model="eval_loss", learning_rate=1e-3, ema_tau=1,
    )  # fmt: skip
    trainer = RFDETRTrainer(tiny_model(), args, shapes, shapes, callbacks=[EarlyStoppingCallback(3)])
    trainer.train()
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert trainer.state.best_metric == min(losses) < max(losses)
    assert trainer.args.greater_is_better is False and args.greater_is_better is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "compute_metrics must return a dict of names and numbers, and returned None"),
        ({"map": 1.0}, "compute_metrics returned 'map', which the evaluation gives itself"),
        ({"eval_map_50": 1.0}, "compute_metrics returned 'map_50', which the evaluation gives itself"),
        ({"a": "good"}, "compute_metrics returned 'good' as 'a', which is no number"),
        ([1.0], "compute_metrics must return a dict"),
        ({"raw_map": 0.77}, "compute_metrics returned 'raw_map', which the evaluation gives itself"),
        ({"eval_x": 1, "x": 2}, "compute_metrics returned 'x' twice, once as 'eval_x'"),
        ({"x": 10**400}, "compute_metrics returned .* as 'x', which is no number"),
        ({"loss": 5.0}, "two values for 'loss': 5.0 and"),
        ({"loss_ce_0": 5.0}, "two values for 'loss_ce_0': 5.0 and"),
        ({"runtime": 5.0}, "two values for 'eval_runtime': 5.0 and .*; let compute_metrics name its scores otherwise"),
        ({"samples_per_second": 5.0}, "two values for 'eval_samples_per_second'"),
    ],
)
def test_what_compute_metrics_must_not_return(tmp_path, tiny_model, shapes, given, message):
    args = quick_arguments(tmp_path, **SHORT, eval_loss=True)
    trainer = RFDETRTrainer(tiny_model(), args, eval_dataset=shapes, compute_metrics=lambda pair: given)
    with pytest.raises(ValueError, match=message):
        trainer.evaluate()


def test_scores_of_two_passes_or_sets_do_not_replace_each_other(tmp_path, tiny_model, shapes):
    held_out = shapes.select(range(2))
    args = quick_arguments(
        tmp_path, **SHORT | {"eval_strategy": "steps", "eval_steps": 1}, eval_raw_weights=True,
        metric_for_best_model="iou,raw_iou",
    )  # fmt: skip
    given = {"iou": 0.5, "raw_iou": 0.77}
    trainer = RFDETRTrainer(tiny_model(), args, shapes, held_out, compute_metrics=lambda pair: given)
    with pytest.raises(ValueError, match="two values for 'eval_raw_iou': 0.5 and 0.77"):
        trainer.train()
    sets = {"day_night": held_out, "day": held_out}
    args = quick_arguments(tmp_path / "sets", **SHORT)
    trainer = RFDETRTrainer(tiny_model(), args, eval_dataset=sets, compute_metrics=lambda pair: {"night_map": 0.1})
    with pytest.raises(ValueError, match="two values for 'eval_day_night_map'.*or rename the evaluation sets"):
        trainer.evaluate()


@pytest.mark.parametrize("name", ["../day", "a/b", "", ".hidden", 5, "day_raw"])
def test_names_of_evaluation_sets_make_folders_and_scores_of_their_own(tmp_path, tiny_model, shapes, name):
    with pytest.raises(ValueError, match=f"eval_dataset: {name!r} names scores"):
        RFDETRTrainer(tiny_model(), quick_arguments(tmp_path), shapes, {"day": shapes, name: shapes})
    RFDETRTrainer(tiny_model(), quick_arguments(tmp_path), shapes, {"day 1.5-a": shapes, "Nacht_": shapes})


def test_a_prefix_that_compute_metrics_gives_is_not_given_twice(tmp_path, tiny_model, shapes):
    args = quick_arguments(tmp_path, **SHORT)
    trainer = RFDETRTrainer(tiny_model(), args, eval_dataset=shapes, compute_metrics=lambda pair: {"eval_a": 2})
    assert trainer.evaluate()["eval_a"] == 2.0


def test_the_logged_rate_is_that_of_the_head(tmp_path, tiny_model, shapes):
    args = quick_arguments(tmp_path, **SHORT | {"max_steps": 4}, logging_steps=1, learning_rate=1e-6, warmup_steps=4)
    trainer = RFDETRTrainer(tiny_model(), args, shapes)
    trainer.train()
    rates = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    assert rates == pytest.approx([0.25e-6, 0.5e-6, 0.75e-6, 1e-6])
    encoder = [group for group in trainer.optimizer.param_groups if group["name"].startswith("encoder")]
    assert max(group["lr"] for group in encoder) <= 1.5e-6
    frozen = tiny_model()
    for name, parameter in frozen.named_parameters():
        parameter.requires_grad_("encoder" in name)
    args = quick_arguments(tmp_path / "frozen", **SHORT, logging_steps=1, learning_rate=1e-6)
    trainer = RFDETRTrainer(frozen, args, shapes)
    trainer.train()
    rates = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    assert rates == pytest.approx([1e-6, 1e-6])


def test_the_token_is_nowhere(tmp_path):
    args = RFDETRTrainingArguments(
        str(tmp_path), hub_token="hf_secret", report_to="wandb",
        tracker_kwargs={"wandb": {"api_key": "hf_secret", "entity": "us", "host": "https://me:hf_secret@host/x"}},
    )  # fmt: skip
    shown = [repr(args), str(args), args.to_json_string(), str(args.to_sanitized_dict()), str(copy.deepcopy(args))]
    assert not any("hf_secret" in text for text in shown) and "'entity': 'us'" in repr(args)
    assert args.to_dict()["tracker_kwargs"] == {"wandb": {"api_key": None, "entity": "us", "host": "https://host/x"}}
    with pytest.raises(ValueError, match="hub_token='...' is not valid") as caught:
        RFDETRTrainingArguments(str(tmp_path), hub_token=["hf_secret"])
    assert "hf_secret" not in str(caught.value)
    for wrong in ('{"wandb": {"api_key": "hf_secret"', '[{"api_key": "hf_secret"}]', [{"api_key": "hf_secret"}]):
        with pytest.raises(ValueError, match="tracker_kwargs") as caught:
            RFDETRTrainingArguments(str(tmp_path), report_to="wandb", tracker_kwargs=wrong)
        assert "hf_secret" not in f"{caught.value} {caught.value.__cause__}"


def test_secrets_under_other_spellings_are_left_out(tmp_path):
    names = ("hf-token", "accessToken", "api-key", "pwd", "passphrase", "Authorization", "credentials")
    addresses = (
        "https://h/x?a=1&token=hf_secret",
        "https://h/x?X-Amz-Signature=hf_secret&b=2",
        "https://h/#access_token=hf_secret",
    )
    given = (
        {name: "hf_secret" for name in names}
        | {f"host{i}": each for i, each in enumerate(addresses)}
        | {"keys": 3, "monkey": 4}
    )
    args = RFDETRTrainingArguments(str(tmp_path), report_to="wandb", tracker_kwargs={"wandb": given})
    assert "hf_secret" not in repr(args) + args.to_json_string()
    kept = args.to_dict()["tracker_kwargs"]["wandb"]
    assert (kept["keys"], kept["monkey"]) == (3, 4) and kept["host0"].startswith("https://h/x?a=1&token=")


def test_the_trainer_of_transformers_has_these_methods_too():
    for name in ("create_model_card", "num_examples", "get_test_dataloader", "get_learning_rates", "push_to_hub",
                 "get_num_trainable_parameters", "log_metrics", "save_metrics", "save_state"):  # fmt: skip
        assert hasattr(transformers.Trainer, name) and hasattr(RFDETRTrainer, name), name


def test_outside_a_training_nothing_is_written_into_another_run(tmp_path, tiny_model, shapes):
    args = quick_arguments(tmp_path, max_steps=1, eval_strategy="no", save_strategy="no")
    trained = RFDETRTrainer(tiny_model(), args, shapes, shapes)
    trained.train()
    last, rows = (tmp_path / "last" / "model.safetensors").read_bytes(), (tmp_path / "metrics.csv").read_bytes()
    trained.evaluate()
    assert (tmp_path / "metrics.csv").read_bytes() == rows
    trained.save_model()  # its own
    for folder in (tmp_path / "new", tmp_path / "new"):
        RFDETRTrainer(tiny_model(), quick_arguments(folder, eval_strategy="no")).save_model()
    other = RFDETRTrainer(tiny_model(), args)
    with pytest.raises(FileExistsError, match="last is of an earlier run; give another folder"):
        other.save_model()
    other.save_model(tmp_path / "elsewhere")
    lock = RunLock(tmp_path)
    lock.acquire()
    try:
        for trainer in (trained, other):
            with pytest.raises(RunInUse, match="another run trains there"):
                trainer.save_model()
    finally:
        lock.release()
    assert (tmp_path / "last" / "model.safetensors").read_bytes() == last


def test_an_augmentation_that_leaves_no_object_is_named(tmp_path, tiny_model, shapes, caplog):
    options = {**SHORT, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}

    def train(folder, augmentation=None, resume=None, data=shapes):
        args = quick_arguments(folder, **options)
        RFDETRTrainer(tiny_model(), args, data, augmentation=augmentation).train(resume)

    train(tmp_path / "run")
    assert "had no object" not in caplog.text
    train(tmp_path / "resumed", lambda image, target: (image, target), str(tmp_path / "run" / "checkpoint-1"))
    assert "augmentation, given in Python: None when checkpoint-1 was written, " in caplog.text
    train(tmp_path / "empty", lambda image, target: (image, {name: v[:0] for name, v in target.items()}))
    assert "the images of epoch 1, to step" in caplog.text and "had no object: all of them trained as" in caplog.text
    train(tmp_path / "custom", data=shapes.with_transform(lambda rows: rows))
    assert "train_dataset has a transform of its own (with_transform)" in caplog.text


def test_rates_follow_a_learning_rate_that_is_set_later(tmp_path, tiny_model, shapes, caplog):
    """As at construction; a rate that was given stays, and what was said once is not said again."""

    def rates(name, later, **options):
        trainer = RFDETRTrainer(tiny_model(), quick_arguments(tmp_path / name, **SHORT, **options), shapes)
        args = trainer.args
        for option, value in later.items():
            setattr(args, option, value)
        trainer.train()
        assert trainer.args is args
        return {group["name"]: group["initial_lr"] for group in trainer.optimizer.param_groups}

    given = {"learning_rate": 1e-3, "save_steps": 4}
    assert rates("later", given, learning_rate_encoder=2e-5) == rates("both", {}, **given, learning_rate_encoder=2e-5)
    caplog.clear()
    plain = rates("plain", {}, save_steps=4)
    assert caplog.text.count("save_steps=4 has no effect") == 1
    assert plain != rates("set", given) == rates("given", {}, **given)
    official = rates("official", {"learning_rate": 1e-3}, recipe="official")
    assert max(official.values()) > 1e-3 - 1e-9


def test_arguments_that_are_set_later_are_checked_before_the_first_step(tmp_path, tiny_model, shapes):
    for name, value in (("max_grad_norm", -1.0), ("gradient_accumulation_steps", 0), ("eval_strategy", "epochs")):
        trainer = RFDETRTrainer(tiny_model(), quick_arguments(tmp_path / name, **SHORT), shapes)
        setattr(trainer.args, name, value)
        with pytest.raises(ValueError, match=f"{name}=.* is not"):
            trainer.train()
        assert not (tmp_path / name).exists()


def test_an_optimizer_without_all_that_is_trained_is_refused(tmp_path, tiny_model, shapes):
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    args = quick_arguments(tmp_path / "lora", **SHORT, lora_r=4)
    with pytest.raises(ValueError, match=r"lacks \d+ parameters .*adapters of lora_r"):
        RFDETRTrainer(model, args, shapes, optimizers=(optimizer, None)).train()
    model = tiny_model()
    optimizer = torch.optim.SGD(model.class_embed.parameters(), 1e-3)
    with pytest.raises(ValueError, match=r"lacks \d+ parameters that are trained"):
        RFDETRTrainer(model, quick_arguments(tmp_path / "head", **SHORT), shapes, optimizers=(optimizer, None)).train()


def test_a_run_does_not_go_on_with_another_schedule(tmp_path, tiny_model, shapes):
    rates = torch.optim.lr_scheduler

    def run(folder, make, resume=None):
        model = tiny_model()
        optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
        options = {**SHORT, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
        given = {"optimizers": (optimizer, make(optimizer))}
        return RFDETRTrainer(model, quick_arguments(folder, **options), shapes, **given).train(resume)

    def joined(gamma):
        def make(optimizer):
            return rates.SequentialLR(optimizer, [rates.ConstantLR(optimizer), rates.StepLR(optimizer, 1, gamma)], [1])

        return make

    # The first changes the momentum in each step.
    for name, make, others in (
        ("one", lambda o: rates.OneCycleLR(o, 1e-4, total_steps=9),
         {"total_steps=9, and this run's with 8": lambda o: rates.OneCycleLR(o, 1e-4, total_steps=8)}),
        ("joined", joined(0.5), {"_schedulers=": joined(0.1)}),
    ):  # fmt: skip
        run(tmp_path / name, make)
        checkpoint = str(tmp_path / name / "checkpoint-1")
        for message, other in others.items():
            with pytest.raises(ValueError, match=f"scheduler.json: the schedule was made with {message}"):
                run(tmp_path / "other", other, checkpoint)
        run(tmp_path / f"same-{name}", make, checkpoint)


def test_a_run_does_not_go_on_with_another_optimizer(tmp_path, tiny_model, shapes):
    def run(folder, make, resume=None):
        model = tiny_model()
        given = {"optimizers": (make(model.parameters()), None)}
        options = {**SHORT, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
        return RFDETRTrainer(model, quick_arguments(folder, **options), shapes, **given).train(resume)

    run(tmp_path / "run", lambda p: torch.optim.AdamW(p, 1e-4, weight_decay=0.1))
    checkpoint = str(tmp_path / "run" / "checkpoint-1")
    others = {
        "lr=0.0001": lambda p: torch.optim.AdamW(p, 1e-1, weight_decay=0.1),
        "weight_decay=0.1": lambda p: torch.optim.AdamW(p, 1e-4, weight_decay=0.5),
        "class=AdamW, and this run's with Adam,": lambda p: torch.optim.Adam(p, 1e-4, weight_decay=0.1),
        "class=AdamW, and this run's with RAdam": lambda p: torch.optim.RAdam(
            p, 1e-4, weight_decay=0.1, decoupled_weight_decay=True
        ),
        "class=AdamW, and this run's with SGD": lambda p: torch.optim.SGD(p, 1e-4, weight_decay=0.1, momentum=0.9),
    }
    for message, make in others.items():
        with pytest.raises(ValueError, match=f"optimizer of .*checkpoint-1 was made with {message}"):
            run(tmp_path / "other", make, checkpoint)
    run(tmp_path / "same", lambda p: torch.optim.AdamW(p, 1e-4, weight_decay=0.1), checkpoint)
