import pytest
import torch
from helpers.models import ENCODER_ATTENTION, pixels
from safetensors.torch import load_file

from rfdetr_hf import (
    RFDETRForInstanceSegmentation,
    RFDETRForObjectDetection,
    RFDETRTrainer,
    RFDETRTrainingArguments,
    add_lora,
    build_param_groups,
    freeze_encoder_blocks,
    load_class_rows,
    load_parts,
    make_shapes_dataset,
    part_of,
    train_only,
)
from rfdetr_hf.models.adapters import has_adapters
from rfdetr_hf.models.backbone import resize_position_table


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


# ---------------------------------------------------------------------------------------------------- freezing


def test_every_parameter_has_a_part(lively_model):
    parts = {name: part_of(name) for name, _ in lively_model.named_parameters()}
    assert parts["backbone.0.encoder.encoder.embeddings.cls_token"] == "encoder"
    assert parts["backbone.0.projector.stages.0.0.cv1.conv.weight"] == "projector"
    assert parts["transformer.decoder.norm.weight"] == parts["query_feat.weight"] == "decoder"
    heads = {name.split(".")[0] for name, part in parts.items() if part == "heads"}
    assert heads == {"class_embed", "bbox_embed", "transformer"}


def test_train_only(lively_model):
    everything = trainable(lively_model)
    train_only(lively_model, ["heads"])
    assert trainable(lively_model) == {name for name in everything if part_of(name) == "heads"}
    train_only(lively_model, ["encoder", "projector", "decoder", "heads"])
    assert trainable(lively_model) == everything
    for parts in (["head"], []):
        with pytest.raises(ValueError, match="encoder, projector, decoder, heads"):
            train_only(lively_model, parts)


def test_freeze_encoder_blocks(lively_model):
    everything = trainable(lively_model)
    freeze_encoder_blocks(lively_model, 0)
    assert trainable(lively_model) == everything
    freeze_encoder_blocks(lively_model, 1)
    frozen = {name.split("encoder.encoder.")[1].split(".")[0:3][0] for name in everything - trainable(lively_model)}
    assert frozen == {"embeddings", "encoder"}
    assert any("layer.1." in name for name in trainable(lively_model))
    assert not any("layer.0." in name or "embeddings" in name for name in trainable(lively_model))
    with pytest.raises(ValueError, match="freeze_encoder_blocks=3.*uses 2 blocks"):
        freeze_encoder_blocks(lively_model, 3)


def test_gradients_reach_what_is_trained_and_nothing_else(lively_model):
    freeze_encoder_blocks(lively_model, 1)
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.3]])}] * 2
    lively_model.train()(pixels(), labels=labels).loss.backward()
    assert {name for name, p in lively_model.named_parameters() if p.grad is not None} == trainable(lively_model)


# ---------------------------------------------------------------------------------------------------- parts of files


def test_load_parts(lively_model, tiny_config, tmp_path):
    lively_model.save_pretrained(tmp_path)
    torch.manual_seed(1)
    other = RFDETRForInstanceSegmentation(tiny_config(("cell",), backbone_config={"out_indices": [1, 2]}))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    load_parts(other, tmp_path, ["encoder", "decoder"])
    source = lively_model.state_dict()
    for name, tensor in other.state_dict().items():
        expected = source[name] if part_of(name) in ("encoder", "decoder") else before[name]
        assert torch.equal(tensor, expected), name


def test_load_parts_resizes_positions(lively_model, tiny_config, tmp_path):
    lively_model.save_pretrained(tmp_path)
    larger = RFDETRForObjectDetection(
        tiny_config(resolution=96, backbone_config={"out_indices": [1, 2], "image_size": 96})
    )
    load_parts(larger, tmp_path, ["encoder"])
    ours, theirs = (m.backbone[0].vit.embeddings.position_embeddings[0] for m in (larger, lively_model))
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1:], resize_position_table(theirs[1:], 12, 12))


def test_load_parts_that_do_not_fit(lively_model, tiny_config, tmp_path):
    lively_model.save_pretrained(tmp_path)
    other = RFDETRForObjectDetection(tiny_config(("cell",), backbone_config={"out_indices": [1, 2]}))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"leave out the part heads"):
        load_parts(other, tmp_path, ["heads", "encoder"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    segmentation = RFDETRForInstanceSegmentation(tiny_config(backbone_config={"out_indices": [1, 2]}))
    with pytest.raises(ValueError, match="has no segmentation_head"):
        load_parts(segmentation, tmp_path, ["heads"])


def test_load_class_rows(lively_model, tmp_path):
    lively_model.save_pretrained(tmp_path)
    names = {0: "star", 1: "triangle", 2: "circle"}
    torch.manual_seed(1)
    other = RFDETRForObjectDetection.from_pretrained(tmp_path, id2label=names)
    fresh = other.class_embed.weight[0].clone()
    assert load_class_rows(other, tmp_path) == ["triangle", "circle"]
    heads = [(m.class_embed, *m.transformer.enc_out_class_embed) for m in (other, lively_model)]
    assert len(heads[0]) == 4
    for ours, theirs in zip(*heads, strict=True):
        assert torch.equal(ours.weight[[1, 2]], theirs.weight[[2, 0]])
        assert torch.equal(ours.bias[[1, 2]], theirs.bias[[2, 0]])
    assert torch.equal(other.class_embed.weight[0], fresh)


# ---------------------------------------------------------------------------------------------------- adapters


def test_adapters_are_what_is_trained_of_the_encoder(lively_model):
    pytest.importorskip("peft")
    outside = {name for name in trainable(lively_model) if part_of(name) != "encoder"}
    add_lora(lively_model, rank=2)
    encoder = trainable(lively_model) - outside
    assert outside <= trainable(lively_model) and encoder and all(".lora_" in name for name in encoder)
    assert not any("layer.2." in name for name in encoder)
    args = RFDETRTrainingArguments()
    groups = build_param_groups(lively_model, args)
    assert {name for group in groups for name in group["param_names"]} == trainable(lively_model)
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates["encoder.layer.0.decay"] == pytest.approx(rates["encoder.layer.1.decay"] * args.layer_decay)


def two_adapters(peft, lively_model):
    for name in ("one", "two"):
        peft.inject_adapter_in_model(peft.LoraConfig(target_modules=ENCODER_ATTENTION), lively_model, name)


def merged_by_peft(peft, lively_model):
    peft.get_peft_model(lively_model, peft.LoraConfig(target_modules=ENCODER_ATTENTION)).merge_adapter()


def disabled(peft, lively_model):
    peft.get_peft_model(
        lively_model, peft.LoraConfig(target_modules=ENCODER_ATTENTION)
    ).base_model.disable_adapter_layers()


def of_kind(kind, **options):
    return lambda peft, model: peft.inject_adapter_in_model(getattr(peft, kind)(**options), model)


UNKNOWN = {
    "one of several": two_adapters,
    "merged into the layer already": merged_by_peft,
    "disabled": disabled,
    "lora_B.default.bias": of_kind("LoraConfig", target_modules=ENCODER_ATTENTION, lora_bias=True),
    "peft.tuners.lora.Conv2d": of_kind("LoraConfig", target_modules=r".*projector.*conv"),
    "peft.tuners.ia3.Linear": of_kind("IA3Config", target_modules=ENCODER_ATTENTION, feedforward_modules=[]),
    "ModulesToSaveWrapper": lambda peft, lively_model: peft.get_peft_model(
        lively_model, peft.LoraConfig(target_modules=ENCODER_ATTENTION, modules_to_save=["query_feat"])
    ),
}


@pytest.mark.parametrize("why", UNKNOWN)
def test_adapters_that_no_file_could_hold_are_refused_at_construction(lively_model, tmp_path, why):
    peft = pytest.importorskip("peft")
    UNKNOWN[why](peft, lively_model)
    with pytest.raises(ValueError, match="merge_and_unload") as refused:
        RFDETRTrainer(lively_model, RFDETRTrainingArguments(output_dir=str(tmp_path / "run")))
    assert why in str(refused.value)
    with pytest.raises(ValueError, match="merge_and_unload"):
        lively_model.save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_a_model_wrapped_by_peft_is_refused_at_construction(lively_model, tmp_path):
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(lively_model, peft.LoraConfig(target_modules=ENCODER_ATTENTION))
    with pytest.raises(TypeError, match="PeftModel: give the model itself"):
        RFDETRTrainer(wrapped, RFDETRTrainingArguments(output_dir=str(tmp_path / "run")))


# ---------------------------------------------------------------------------------------------------- the trainer


@pytest.fixture
def run(tiny_config, tmp_path):
    """Make a trainer with DoRA on a model that is always the same: `run(folder, **options)`."""
    pytest.importorskip("peft")
    dataset = make_shapes_dataset(10, image_size=64)

    def build(folder, **options):
        torch.manual_seed(0)
        options = {
            "max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1,
            "save_strategy": "steps", "save_steps": 2, "eval_strategy": "no", "dataloader_num_workers": 0,
            "disable_tqdm": True, "learning_rate_encoder": 0.1, "lora_r": 2, "use_dora": True, **options,
        }  # fmt: skip
        model = RFDETRForObjectDetection(tiny_config())
        args = RFDETRTrainingArguments(output_dir=str(tmp_path / folder), **options)
        return RFDETRTrainer(model, args, train_dataset=dataset, eval_dataset=dataset.select(range(2)))

    return build


def test_trainer_saves_plain_models(run, tmp_path):
    trainer = run("a", eval_strategy="steps", eval_steps=2)
    base = trainer.model.backbone[0].vit.layers[0].attention.attention["query"].weight.clone()
    trainer.train()
    assert not has_adapters(trainer.model)
    for folder in ("best", "last", "checkpoint-4"):
        loaded = RFDETRForObjectDetection.from_pretrained(tmp_path / "a" / folder)
        assert not any(".lora_" in name for name in load_file(tmp_path / "a" / folder / "model.safetensors"))
        query = loaded.backbone[0].vit.layers[0].attention.attention["query"].weight
        assert not torch.allclose(query, base, atol=1e-4)
    best = load_file(tmp_path / "a" / "best" / "model.safetensors")
    assert all(torch.equal(tensor, best[name]) for name, tensor in trainer.model.state_dict().items())
    assert not (tmp_path / "a" / "best" / "adapters.safetensors").exists()


def test_frozen_blocks_get_no_adapters(run, tmp_path):
    trainer = run("a", freeze_encoder_blocks=2, max_steps=2)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    assert any(".layer.2." in name and ".lora_A." in name for name in adapters_of(tmp_path / "a" / "checkpoint-2"))
    moved = {name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])}
    encoder = {name.split(".layer.")[-1][0] for name in moved if part_of(name) == "encoder"}
    assert encoder == {"2"}


def adapters_of(checkpoint):
    return load_file(checkpoint / "adapters.safetensors")


def test_a_model_that_has_adapters_trains_them(run, tmp_path, caplog):
    """peft's own, under another name; saved merged, taken up again unmerged."""
    peft = pytest.importorskip("peft")

    def own(folder, **options):
        trainer = run(folder, **options)
        config = peft.LoraConfig(r=3, target_modules=["query"])
        peft.inject_adapter_in_model(config, trainer.model.backbone, "mine")
        return trainer

    own("whole").train()
    assert "the model has adapters already" in caplog.text
    adapters = adapters_of(tmp_path / "whole" / "checkpoint-4")
    assert any(name.endswith("lora_B.mine.weight") and tensor.abs().sum() > 0 for name, tensor in adapters.items())
    own("parts", max_steps=2, lr_scheduler_type="constant").train()
    resumed = own("parts")
    resumed.train(resume_from_checkpoint=True)
    whole, parts = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and not any(".lora_" in name for name in whole)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_resumed_adapters_end_with_the_same_bits(run, tmp_path):
    run("whole").train()
    run("parts", max_steps=2, lr_scheduler_type="constant").train()
    resumed = run("parts")
    resumed.train(resume_from_checkpoint=True)
    whole = load_file(tmp_path / "whole" / "last" / "model.safetensors")
    parts = load_file(tmp_path / "parts" / "last" / "model.safetensors")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_checkpoint_with_adapters_needs_a_run_with_adapters(run):
    run("a", max_steps=2).train()
    with pytest.raises(ValueError, match="the weights do not fit the model: missing"):
        run("a", lora_r=0, use_dora=False).train(resume_from_checkpoint=True)


def test_frozen_parts_do_not_move(run, tmp_path):
    trainer = run("a", lora_r=0, use_dora=False, freeze_encoder_blocks=1, max_steps=2)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    moved = {name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not any("embeddings" in name or "layer.0." in name for name in moved)
    assert any("encoder.layer.1." in name for name in moved) and "class_embed.weight" in moved


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze_backbone": True, "lora_r": 4}, "freeze_backbone and lora_r"),
        ({"lora_r": -1}, "lora_r=-1"),
        ({"lora_dropout": 1.0}, "lora_dropout=1.0"),
        ({"freeze_encoder_blocks": -1}, "freeze_encoder_blocks=-1"),
    ],
)
def test_arguments_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        RFDETRTrainingArguments(**options)
