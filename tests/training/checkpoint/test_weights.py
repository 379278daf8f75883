"""The weights of a run and their average, as files and back."""

import pytest
from helpers.checkpoints import arguments, finish

from rfdetr_hf import RFDETRImageProcessor, RFDETRTrainer
from rfdetr_hf.training.checkpoint.directory import CheckpointError


def test_other_values_of_the_model_are_told(tmp_path, tiny_model, shapes, caplog):
    args = arguments(tmp_path, max_steps=1, eval_strategy="no", save_strategy="steps", save_steps=1)
    RFDETRTrainer(tiny_model(), args, shapes).train()
    RFDETRTrainer(tiny_model(), args, shapes).train(resume_from_checkpoint=True)
    assert "the model has changed" not in caplog.text
    model = tiny_model(class_loss_coefficient=3.0, backbone_config={"drop_path_rate": 0.5})
    processor = RFDETRImageProcessor(size={"height": 72, "width": 64})
    RFDETRTrainer(model, args, shapes, image_processor=processor).train(resume_from_checkpoint=True)
    for changed in ("class_loss_coefficient 1 -> 3.0", "backbone_config.drop_path_rate 0.0 -> 0.5",
                    "size.height 64 -> 72"):  # fmt: skip
        assert changed in caplog.text
    for name, before, now in (("num_queries", 10, 8), ("decoder_self_attention_heads", 2, 4)):
        with pytest.raises(
            ValueError, match=rf"checkpoint-1 was written with another structure \({name} {before} -> {now}\)"
        ):
            RFDETRTrainer(tiny_model(**{name: now}), args, shapes).train(resume_from_checkpoint=True)


def test_a_model_that_holds_nan_is_not_trained(tmp_path, tiny_model, shapes):
    model = tiny_model()
    model.class_embed.bias.data[0] = float("nan")
    with pytest.raises(CheckpointError, match="the model to train: NaN or infinite numbers in class_embed.bias"):
        finish(model, arguments(tmp_path), shapes)
