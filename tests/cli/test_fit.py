import ast
import inspect
from pathlib import Path

import pytest
import torch
from datasets import DatasetDict
from helpers.models import TINY_OVERRIDES as TINY
from helpers.scripts import load_script

from rfdetr_hf import (
    DataArguments,
    KeypointSchema,
    ModelArguments,
    RFDETRConfig,
    RFDETRForKeypointDetection,
    RFDETRTrainer,
    RFDETRTrainingArguments,
    class_names,
    make_shapes_dataset,
    parse_arguments,
)
from rfdetr_hf.cli import fit
from rfdetr_hf.data.schema import keypoint_schema


def build(folder, seed):
    model_args = ModelArguments(from_scratch=True, config_overrides=TINY, resolution=64)
    trainer = fit.build_trainer(model_args, DataArguments(), RFDETRTrainingArguments(str(folder), seed=seed))
    return trainer.model.state_dict()


def test_the_seed_of_a_run_decides_its_first_weights(tmp_path):
    first, again, other = build(tmp_path, 1), build(tmp_path, 1), build(tmp_path, 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["query_feat.weight"], other["query_feat.weight"])


def test_fine_tuning_of_keypoints_starts_with_precision_one(tmp_path, tiny_config):
    dataset = make_shapes_dataset(2, image_size=64, task="keypoints")
    schema = keypoint_schema(dataset)
    model = RFDETRForKeypointDetection(tiny_config(num_keypoints_per_class=schema.num_keypoints_per_class))
    torch.nn.init.ones_(model.keypoint_embed.layers[-1].weight)
    model.save_pretrained(tmp_path / "saved")
    DatasetDict(train=dataset, validation=dataset).save_to_disk(tmp_path / "data")
    data_args = DataArguments(str(tmp_path / "data"))
    built = fit.build_trainer(
        ModelArguments(str(tmp_path / "saved")), data_args, RFDETRTrainingArguments(str(tmp_path / "run"))
    ).model
    assert built.config.keypoint_schema == KeypointSchema.from_dict(schema.to_dict()).to_dict()
    assert [built.config.id2label[i] for i in range(3)] == class_names(dataset)
    assert not built.keypoint_embed.layers[-1].weight[4:7].any()
    assert not built.keypoint_embed.layers[-1].bias[4:7].any()


def test_a_keypoint_model_learns_the_names_of_its_keypoints_from_the_data(tmp_path, tiny_config):
    dataset = make_shapes_dataset(2, image_size=64, task="keypoints")
    schema = keypoint_schema(dataset)
    model = RFDETRForKeypointDetection(tiny_config(num_keypoints_per_class=schema.num_keypoints_per_class))
    RFDETRTrainer(model, RFDETRTrainingArguments(str(tmp_path)), dataset, dataset).save_model(str(tmp_path / "saved"))
    assert RFDETRConfig.from_pretrained(tmp_path / "saved").keypoint_schema == schema.to_dict()
    assert model.config.keypoint_schema is None
    other = RFDETRForKeypointDetection(tiny_config(num_keypoints_per_class=[1, 1, 1]))
    with pytest.raises(ValueError, match=r"num_keypoints_per_class is \[1, 1, 1\]"):
        RFDETRTrainer(other, RFDETRTrainingArguments(str(tmp_path)), dataset, dataset)


@pytest.mark.parametrize("variant", ["nano", "seg-nano"])
def test_models_of_every_task_are_built_from_a_variant(variant, tmp_path):
    args = ModelArguments(model_name_or_path=variant, from_scratch=True, config_overrides=TINY, resolution=64)
    dataset = make_shapes_dataset(2, image_size=64, task=args.task)
    DatasetDict(train=dataset, validation=dataset).save_to_disk(tmp_path / "data")
    trainer = fit.build_trainer(args, DataArguments(str(tmp_path / "data")), RFDETRTrainingArguments(str(tmp_path)))
    expected = {"nano": "RFDETRForObjectDetection", "seg-nano": "RFDETRForInstanceSegmentation"}
    assert type(trainer.model).__name__ == expected[variant] and trainer.model.config.num_labels == 3


def test_the_command_and_the_example_are_the_same_statements():
    """Each shows the steps in plain sight, so they are written twice; comments may differ."""
    example = Path(__file__).parents[2] / "examples" / "train.py"
    main = next(n for n in ast.parse(example.read_text()).body if isinstance(n, ast.FunctionDef) and n.name == "main")
    body = ast.parse(inspect.getsource(fit.build_trainer)).body[0].body[1:-1]
    of_command = [ast.unparse(each) for each in body if not isinstance(each, ast.ImportFrom)]
    of_example = [ast.unparse(each) for each in main.body]
    start = of_example.index(of_command[0])
    assert of_example[start : start + len(of_command)] == of_command


def test_a_used_folder_is_refused_before_the_data_is_looked_for(tmp_path, monkeypatch):
    (tmp_path / "run" / "best").mkdir(parents=True)
    words = [str(tmp_path / "no" / "data"), "--model", "nano", "--from_scratch", "--output_dir", str(tmp_path / "run")]
    example = load_script("examples/train.py")
    monkeypatch.setattr(example, "end_with_launcher", lambda: None)
    for program in (fit.main, example.main):
        with pytest.raises(FileExistsError, match="holds an earlier run"):
            program(words)
        with pytest.raises(ValueError, match="no.data"):
            program([*words[:-1], str(tmp_path / "new")])


@pytest.mark.parametrize("name", ["segmentation", "keypoints"])
def test_the_configuration_of_a_task_takes_a_model_of_another(name, tmp_path):
    """The remedy for data without masks or keypoints is another model, and needs no other change of the file."""
    config = str(Path(__file__).parents[2] / "examples" / "configs" / f"{name}.yaml")
    words = ["--config", config, "--model", "nano", "--from_scratch", "--output_dir", str(tmp_path / "run")]
    model_args, data_args, training_args, _ = parse_arguments(fit.TYPES, words, "rfdetr-hf fit")
    assert data_args.load_options(model_args.task)["task"] == "detection"
    assert training_args.for_run("detection").metric_for_best_model == "map"
