"""The command line beside a file: what is typed wins, in whatever words the file says the same."""

from dataclasses import dataclass, fields

import pytest
import yaml
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from rfdetr_hf import (
    DataArguments,
    EvaluateArguments,
    LaunchArguments,
    ModelArguments,
    PredictArguments,
    RFDETRTrainingArguments,
    UsageError,
    parse_arguments,
    to_yaml,
)
from rfdetr_hf.arguments.words import aliases, explain
from rfdetr_hf.cli import fit
from rfdetr_hf.cli.main import main


@pytest.fixture
def parse(tmp_path):
    """Parses options of `fit` beside a file with the given ones."""

    def parsed(file, *words):
        path = tmp_path / "file.yaml"
        path.write_text(file if isinstance(file, str) else yaml.safe_dump(file))
        return parse_arguments(fit.TYPES, ["--config", str(path), *words])

    return parsed


@pytest.mark.parametrize(
    ("file", "words", "expected"),
    [
        ({"mixed_precision": "bf16", "bf16": True, "fp16": False}, ["--mixed_precision", "no"], ("no", False, False)),
        ({"mixed_precision": "no", "bf16": False, "fp16": False}, ["--bf16"], ("auto", True, False)),
        ({"mixed_precision": "bf16", "bf16": True}, ["--fp16"], ("auto", False, True)),
        ({"bf16": True}, [], ("auto", True, False)),
    ],
)
def test_the_precision_that_is_typed_wins(parse, file, words, expected):
    args = parse(file, *words)[2]
    asked = {("no", False, False): "no", ("auto", True, False): "bf16", ("auto", False, True): "fp16"}[expected]
    assert args.precision_asked == asked


def test_a_file_that_contradicts_itself_is_refused(parse):
    with pytest.raises(UsageError, match="exclude each other"):
        parse({"mixed_precision": "no", "bf16": True}, "--lr", "1e-4")


def test_what_config_prints_takes_another_model(parse, capsys):
    assert main(["config", "--num_processes", "2"]) == 0
    printed = capsys.readouterr().out
    model, _, _, launch = parse(printed, "--model", "small")
    assert model.model_name_or_path == model.variant == "small" and launch.num_processes == 2


@pytest.mark.parametrize(("file", "words"), [({}, ["--revision", "main"]), ({"revision": "main"}, []),
                                             ({"variant": "nano"}, ["--revision", "main"])])  # fmt: skip
def test_a_revision_is_that_of_the_default_model_too(parse, file, words):
    model = parse(file, *words)[0]
    assert (model.model_name_or_path, model.revision) == ("nano", "main")


def run_file(task="detection", **options):
    """`args.yaml` as a run on the model of a task writes it."""
    return to_yaml({"training": RFDETRTrainingArguments(**options).for_run(task).to_dict()})


@pytest.mark.parametrize(("options", "expected"), [({}, 7.5e-5), ({"learning_rate_encoder": 7e-5}, 7e-5)])
def test_a_rate_that_followed_from_the_learning_rate_follows_again(parse, options, expected):
    args = parse(run_file(**options), "--lr", "5e-5")[2]
    assert args.learning_rate == 5e-5
    assert args.for_run("detection").learning_rate_encoder == pytest.approx(expected)


def test_the_metric_of_a_file_goes_with_the_task_of_its_model(parse):
    """What followed from the task of one model does not choose the best of another task; what was chosen does."""
    for task, options, words, expected in (
        ("detection", {}, [], "segm_map"),
        ("detection", {"recipe": "official"}, [], "segm_map_at_500"),
        ("segmentation", {"metric_for_best_model": "map"}, [], "map"),
        ("detection", {"metric_for_best_model": "map_50"}, [], "map_50"),
        ("detection", {}, ["--metric_for_best_model", "map"], "map"),
    ):
        args = parse(run_file(task, **options), "--lr", "1e-4", *words)[2]
        assert args.for_run("segmentation").metric_for_best_model == expected, (task, options, words)


def test_one_dash_is_no_option():
    with pytest.raises(UsageError, match="'-m'.*two dashes"):
        parse_arguments(fit.TYPES, ["-m", "nano"], positional={"dataset_name": "DATA"})


def test_an_option_of_several_values_says_that_it_took_the_model():
    with pytest.raises(UsageError, match="stands before it"):
        parse_arguments((PredictArguments,), ["--formats", "json", "MODEL", "a.jpg"])


def test_verbs_have_the_words_of_a_training_under_their_own_names():
    known = [each.name for each in fields(EvaluateArguments)]
    assert explain("batch", known).startswith("batch of ultralytics is batch_size here")

    @dataclass
    class Loading:
        num_workers: int = 0

    assert aliases([each.name for each in fields(Loading)])["workers"] == "num_workers"
    both = [each.name for cls in (ModelArguments, RFDETRTrainingArguments, LaunchArguments) for each in fields(cls)]
    assert aliases(both)["workers"] == "dataloader_num_workers"


def test_a_checkpoint_that_can_only_be_the_data_is_asked_about(tmp_path, capsys):
    assert main(["fit", "--resume", "my/data", "--output_dir", str(tmp_path)]) == 2
    assert "'my/data' for its checkpoint, and DATA is missing" in capsys.readouterr().err


def test_an_alias_is_switched_off_like_its_option():
    assert parse_arguments(fit.TYPES, ["--no_pin_memory"])[2].dataloader_pin_memory is False


@pytest.mark.parametrize("value", [[], "", " "])
@pytest.mark.parametrize("name", ["model_name_or_path", "output_dir", "hub_model_id", "report_to"])
def test_an_empty_value_is_not_the_default(parse, name, value):
    with pytest.raises(UsageError, match=rf"file\.yaml.*{name}"):
        parse({name: value})
    if value == "":
        with pytest.raises(UsageError, match=f"^{name} is an empty text"):
            parse({}, f"--{name}", "")


TYPES = (ModelArguments, DataArguments, RFDETRTrainingArguments)


def test_yaml_and_command_line_are_read_together_and_the_command_line_wins(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        "learning_rate: 1e-3\nbf16: true\nnum_train_epochs: 7\neval_strategy: steps\neval_steps: 10\n"
        "save_total_limit: null\nconfig_overrides: {num_queries: 30, backbone_config: {hidden_size: 64}}\n"
        "lr_scheduler_type: cosine_with_restarts\nlr_scheduler_kwargs: {num_cycles: 2}\n"
        "report_to: [tensorboard, wandb]\nmulti_scale: off\nsave_strategy: no\n"
    )
    model, data, training = parse_arguments(TYPES, ["--config", str(config), "--num_train_epochs", "3"])
    assert (training.learning_rate, training.bf16, training.num_train_epochs) == (1e-3, True, 3)
    assert training.eval_strategy is IntervalStrategy.STEPS and training.eval_steps == 10
    assert training.save_total_limit is None
    assert model.config_overrides == {"num_queries": 30, "backbone_config": {"hidden_size": 64}}
    assert training.lr_scheduler_kwargs == {"num_cycles": 2}
    assert training.trackers == ("tensorboard", "wandb")
    assert training.multi_scale == "off" and training.save_strategy is SaveStrategy.NO
    assert data.dataset_name == "synthetic-shapes"


def test_an_unknown_yaml_key_names_file_key_and_the_nearest_option(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("learning_rat: 1\n")
    with pytest.raises(ValueError, match=r"'learning_rat' in .*run\.yaml; did you mean 'learning_rate'\?"):
        parse_arguments(TYPES, ["--config", str(config)])


@pytest.mark.parametrize("argv", [["--leraning_rate", "1"], ["--leraning_rate=1"]])
def test_an_unknown_command_line_option_names_the_nearest_option(argv):
    with pytest.raises(ValueError, match="'leraning_rate' on the command line; did you mean 'learning_rate'"):
        parse_arguments(TYPES, argv)


def test_a_word_of_no_option_says_how_to_write_several_values():
    with pytest.raises(ValueError, match="'mlflow' on the command line is one word too many: .*join several"):
        parse_arguments(TYPES, ["--report_to", "wandb", "mlflow"])


def test_options_can_not_be_abbreviated():
    with pytest.raises(ValueError, match="unknown option 'ema_dec'"):
        parse_arguments(TYPES, ["--ema_dec", "0.9"])


@pytest.mark.parametrize(
    ("text", "message"), [("[1, 2]", "must hold a mapping"), ("a: [", "not valid YAML")], ids=["list", "broken"]
)
def test_a_broken_yaml_file_is_named(tmp_path, text, message):
    config = tmp_path / "run.yaml"
    config.write_text(text)
    with pytest.raises(ValueError, match=message):
        parse_arguments(TYPES, ["--config", str(config)])


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("run_name: yes", "run_name", "yes"),
        ("run_name: 01", "run_name", "01"),
        ("run_name: 12:30", "run_name", "12:30"),
        ("run_name: 2020-01-01", "run_name", "2020-01-01"),
        ("run_name: null", "run_name", None),
        ("run_name: 'null'", "run_name", "null"),
        ("report_to: [tensorboard, wandb]", "report_to", "tensorboard,wandb"),
        ("save_strategy: no", "save_strategy", "no"),
        ("multi_scale: OFF", "multi_scale", "off"),
        ("resume_from_checkpoint: True", "resume_from_checkpoint", "true"),
        ("learning_rate: 1e-3", "learning_rate", 1e-3),
        ("learning_rate: '1e-3'", "learning_rate", 1e-3),
        ("max_steps: 010", "max_steps", 10),
        ("bf16: yes", "bf16", True),
        ("bf16: 'true'", "bf16", True),
    ],
)
def test_a_value_of_a_file_is_what_is_written(tmp_path, line, name, value):
    config = tmp_path / "run.yaml"
    config.write_text(line + "\n")
    (args,) = parse_arguments((RFDETRTrainingArguments,), ["--config", str(config)])
    assert getattr(args, name) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: null", r"run\.yaml: learning_rate: 'null' must be a number"),
        ("learning_rate:", r"run\.yaml: learning_rate: '' must be a number"),
        ("learning_rate: true", r"run\.yaml: learning_rate: 'true' must be a number"),
        ("learning_rate: [1, 2]", r"run\.yaml: learning_rate: .* must be a number"),
        ("learning_rate: {a: 1}", r"run\.yaml: learning_rate: .* must be a number"),
        ("learning_rate: 1e400", r"run\.yaml: learning_rate=inf is not valid: it must be a number, in \(0, 10\]"),
        ("learning_rate: .nan", r"run\.yaml: learning_rate: '\.nan' must be a number"),
        ("lora_r: 12:30", r"run\.yaml: lora_r: '12:30' must be a whole number"),
        ("max_steps: 3.5", r"run\.yaml: max_steps: '3\.5' must be a whole number"),
        ("max_steps: 99999999999999999999", r"run\.yaml: max_steps=99999999999999999999 is not valid"),
        ("seed: -1", r"run\.yaml: seed=-1 is not valid: it must be a whole number, in \[0, 4\.29497e\+09\]"),
        ("bf16: maybe", r"run\.yaml: bf16: 'maybe' must be true or false"),
        ("seed: 1\nseed: 2", r"run\.yaml is not valid YAML: 'seed' stands there twice"),
        ("run_name: {a: 1}", r"run\.yaml: run_name: .* must be a text or null"),
        ("audit: sometimes", r"run\.yaml: audit='sometimes' is not known; choose one of full"),
        ("eval_strategy: always", r"run\.yaml: eval_strategy='always' is not known; choose one of no"),
        ("seed: " + "[" * 3000, r"run\.yaml is not valid YAML"),
        ("1: 2", r"unknown option '1' in .*run\.yaml"),
        ("!!python/object:os.system x", r"run\.yaml is not valid YAML"),
        ("run_name: 2020-99-99", r"run\.yaml is not valid YAML: month"),
    ],
)
def test_what_a_file_must_not_hold_is_named_with_file_and_option(tmp_path, text, message):
    config = tmp_path / "run.yaml"
    config.write_text(text + "\n")
    with pytest.raises(UsageError, match=message):
        parse_arguments((RFDETRTrainingArguments,), ["--config", str(config)])


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path, message in ((tmp_path, "Is a directory"), (tmp_path / "none.yaml", "No such file")):
        with pytest.raises(UsageError, match=f"--config {path}: {message}"):
            parse_arguments((RFDETRTrainingArguments,), ["--config", str(path)])
    (tmp_path / "latin.yaml").write_bytes(b"run_name: \xe9\n")
    with pytest.raises(UsageError, match=r"latin\.yaml is not valid YAML: 'utf-8' codec"):
        parse_arguments((RFDETRTrainingArguments,), ["--config", str(tmp_path / "latin.yaml")])
