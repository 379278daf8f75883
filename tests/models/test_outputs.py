"""Outputs as Transformers has them: order, states, attention weights; and inputs that no model can read."""

import pytest
import torch
from helpers.models import MODEL_CLASSES
from transformers import Trainer, TrainingArguments

from rfdetr_hf import RFDETRForObjectDetection, RFDETRImageProcessor


def labels_of(model_class, count=2):
    label = {"class_labels": torch.tensor([1, 2]), "boxes": torch.tensor([[0.5, 0.5, 0.3, 0.3], [0.2, 0.3, 0.2, 0.2]])}
    label["masks"] = torch.ones(2, 64, 64, dtype=torch.bool)
    label["keypoints"] = torch.tensor([0.5, 0.5, 2.0]).expand(2, 3, 3)
    return [dict(label) for _ in range(count)]


@pytest.mark.parametrize(("model_class", "fields", "extra"), MODEL_CLASSES)
@pytest.mark.parametrize("training", [True, False])
def test_order_of_outputs(deep_config, rng, model_class, fields, extra, training):
    model = model_class(deep_config(**fields)).train(training)
    pixels = torch.randn(2, 3, 64, 64, generator=rng)
    output = model(pixels, labels=labels_of(model_class), output_hidden_states=True, output_attentions=True)
    if training and extra == ["pred_masks"]:
        extra = []  # in training masks are never multiplied out
    assert list(output)[: 4 + len(extra)] == ["loss", "loss_dict", "logits", "pred_boxes", *extra]
    assert list(output)[-4:] == ["last_hidden_state", "hidden_states", "attentions", "cross_attentions"]
    as_tuple = model(pixels, labels=labels_of(model_class), return_dict=False, num_boxes=4.0, seed=0)
    assert as_tuple[0].ndim == 0 and isinstance(as_tuple[1], dict) and as_tuple[3].shape[-1] == 4
    assert output["loss"] is output.loss and output[0] is output.loss


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(("model_class", "fields", "extra"), MODEL_CLASSES)
def test_both_kinds_of_gradient_checkpointing(deep_config, rng, model_class, fields, extra, reentrant):
    model = model_class(deep_config(**fields)).train()
    pixels = torch.randn(2, 3, 64, 64, generator=rng)

    def gradients():
        model.zero_grad()
        model(pixels, labels=labels_of(model_class), seed=0).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found = gradients()
    assert found.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "torch.uint8: the model takes normalised floats"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.int64), "torch.int64"),
        (torch.zeros(0, 3, 64, 64), "no image"),
        (torch.zeros(3, 64, 64), r"shape \(batch, 3, H, W\)"),
        (torch.zeros(1, 1, 64, 64), r"shape \(batch, 3, H, W\)"),
        (torch.zeros(1, 3, 60, 64), "divisible"),
    ],
)
def test_pixels_that_are_none(deep_config, pixels, message):
    with pytest.raises(ValueError, match=message):
        RFDETRForObjectDetection(deep_config()).eval()(pixels)


def test_paths_are_pictures(tmp_path):
    from PIL import Image

    picture = Image.new("RGB", (40, 30), (200, 100, 50))
    picture.save(tmp_path / "a.png")
    processor = RFDETRImageProcessor(size={"height": 64, "width": 64})
    expected = processor(picture, return_tensors="pt")["pixel_values"]
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), [tmp_path / "a.png"], (tmp_path / "a.png",)):
        assert torch.equal(processor(given, return_tensors="pt")["pixel_values"], expected)
    with pytest.raises(FileNotFoundError, match="b.png"):
        processor(tmp_path / "b.png")


def test_the_plain_trainer_trains_and_evaluates(deep_config, tmp_path, rng):
    """As in the example scripts: logits and boxes are what follows the loss and its terms."""

    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return {"pixel_values": torch.full((3, 64, 64), index / 4), "labels": labels_of(None, 1)[0]}

    def collate(items):
        return {
            "pixel_values": torch.stack([item["pixel_values"] for item in items]),
            "labels": [item["labels"] for item in items],
        }

    seen = []

    def metrics(pair):
        seen.append(pair.predictions)
        return {"queries": pair.predictions[1].shape[-2]}

    options = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "max_steps": 2, "report_to": "none"}
    args = TrainingArguments(
        str(tmp_path), remove_unused_columns=False, eval_do_concat_batches=False, use_cpu=True, **options
    )
    model = RFDETRForObjectDetection(deep_config())
    trainer = Trainer(
        model, args, train_dataset=Data(), eval_dataset=Data(), data_collator=collate,
        compute_metrics=lambda pair: seen.append(pair.predictions) or {},
    )  # fmt: skip
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    terms, logits, boxes = seen[0][0][:3]
    assert "loss_ce" in terms and logits.shape == (2, 6, 5) and boxes.shape == (2, 6, 4)


@pytest.mark.filterwarnings("ignore")
def test_dynamic_int8_quantisation(deep_config, rng):
    model = RFDETRForObjectDetection(deep_config()).eval()
    pixels = torch.randn(1, 3, 64, 64, generator=rng)
    expected = model(pixels).logits
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        torch.testing.assert_close(quantised(pixels).logits, expected, atol=0.5, rtol=0)
