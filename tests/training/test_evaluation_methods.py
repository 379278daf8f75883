"""How the weights of a trainer are evaluated and predict."""

from functools import partial

import pytest
import torch
from helpers.runs import quick_arguments

from rfdetr_hf import RFDETRTrainer

arguments = partial(
    quick_arguments, num_train_epochs=2, gradient_accumulation_steps=2, logging_steps=2, learning_rate=1e-3,
    learning_rate_encoder=1e-3, metric_for_best_model=None,
)  # fmt: skip


def test_by_default_only_the_average_is_evaluated(tmp_path, tiny_model, shapes, held_out):
    trainer = RFDETRTrainer(tiny_model(), arguments(tmp_path, max_steps=3), shapes, held_out)
    trainer.train()
    logged = {key for row in trainer.state.log_history for key in row}
    assert {"eval_map", "eval_map_small", "eval_mar_1", "eval_map_75"} <= logged
    assert not any("raw_" in name for name in logged)
    assert (tmp_path / "eval" / "3" / "ema" / "metrics.json").is_file()


def test_evaluation_without_data_is_refused(tmp_path, tiny_model, shapes):
    with pytest.raises(ValueError, match="needs an eval_dataset"):
        RFDETRTrainer(tiny_model(), arguments(tmp_path), shapes)


def test_predict_gives_the_detections_of_the_image_processor(tmp_path, tiny_model, held_out):
    model = tiny_model().eval()
    trainer = RFDETRTrainer(model, arguments(tmp_path, eval_strategy="no"))
    output = trainer.predict(held_out)
    assert [each["image_id"] for each in output.predictions] == held_out["image_id"]
    assert {"test_map", "test_mar_100"} <= output.metrics.keys()
    from rfdetr_hf.data.schema import decode_image

    image = decode_image(held_out[3])
    processor = trainer.image_processor
    with torch.no_grad():
        raw = model(**processor(image, return_tensors="pt"))
    sizes = [(image.height, image.width)]
    expected = processor.post_process_object_detection(raw, threshold=-1.0, target_sizes=sizes)[0]
    for key, value in expected.items():
        torch.testing.assert_close(output.predictions[3][key], value, rtol=1e-4, atol=1e-4)
