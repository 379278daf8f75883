"""The command line beside a file: what is typed wins, in whatever words the file says the same."""

from dataclasses import dataclass, fields

import pytest
import yaml

from rfdetr_hf import (
    EvaluateArguments,
    LaunchArguments,
    ModelArguments,
    PredictArguments,
    RFDETRTrainingArguments,
    UsageError,
    make_shapes_dataset,
    parse_arguments,
    to_yaml,
)
from rfdetr_hf.arguments.words import aliases, explain
from rfdetr_hf.cli import fit
from rfdetr_hf.cli.evaluate import TYPES as EVALUATE_TYPES
from rfdetr_hf.cli.main import main
from rfdetr_hf.cli.trained import parse_verb


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


def test_the_file_of_a_training_with_processes_serves_the_evaluation(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("num_processes: 2\ndevice: 0,1\nlearning_rate: 1e-4\nbatch_size: 3\n")
    args = parse_verb(EVALUATE_TYPES, ["model", "data", "--config", str(file)], "rfdetr-hf evaluate", "")[0]
    assert args.device is None and "num_processes" in capsys.readouterr().err


@pytest.mark.parametrize(("device", "expected"), [("0", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu"), (None, None)])
def test_a_number_is_that_of_a_gpu(device, expected):
    assert EvaluateArguments(model_name_or_path="m", device=device).device == expected
    assert PredictArguments(model_name_or_path="m", images=["a.jpg"], device=device).device == expected


@pytest.mark.parametrize("device", ["0,1", "gpu", "cuda:x", ""])
def test_a_device_that_is_none_is_refused_by_name(device):
    with pytest.raises(ValueError, match="device=.*cuda:1"):
        EvaluateArguments(model_name_or_path="m", device=device)


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


def test_a_field_of_the_model_that_is_given_twice():
    names = {"0": "circle", "1": "square", "2": "triangle"}
    given = ModelArguments(config_overrides={"resolution": 64, "id2label": names}, resolution=64)
    data = make_shapes_dataset(1, image_size=64)
    assert given.config_fields(data)["id2label"] == {0: "circle", 1: "square", 2: "triangle"}
    with pytest.raises(ValueError, match="config_overrides gives another resolution than resolution"):
        ModelArguments(config_overrides={"resolution": 640}, resolution=64).config_fields()
    with pytest.raises(ValueError, match="config_overrides gives another id2label than the data"):
        ModelArguments(config_overrides={"id2label": {"0": "x"}}).config_fields(data)


@pytest.mark.parametrize("value", [[], "", " "])
@pytest.mark.parametrize("name", ["model_name_or_path", "output_dir", "hub_model_id", "report_to"])
def test_an_empty_value_is_not_the_default(parse, name, value):
    with pytest.raises(UsageError, match=rf"file\.yaml.*{name}"):
        parse({name: value})
    if value == "":
        with pytest.raises(UsageError, match=f"^{name} is an empty text"):
            parse({}, f"--{name}", "")
