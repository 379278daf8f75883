"""The detector of one size that is exported."""

import torch

from rfdetr_hf.export.wrapper import FixedSizeDetector


def test_fixed_size_detector_equals_the_model(detector):
    fixed = FixedSizeDetector(detector, (32, 64))
    pixels = fixed.example(2)
    with torch.no_grad():
        outputs = detector.eval()(pixels)
        logits, boxes = fixed(pixels)
    assert fixed.output_names == ["logits", "pred_boxes"]
    assert torch.equal(logits, outputs.logits) and torch.equal(boxes, outputs.pred_boxes)


def test_fixed_size_detector_leaves_out_what_training_needs_and_the_model_as_it_was(detector):
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    detector.train()
    fixed = FixedSizeDetector(detector, (64, 64))
    assert detector.training and detector.config.group_detr == 3 and next(detector.parameters()).requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())
    names = {name for name, _ in fixed.model.named_parameters()}
    assert {name.split(".")[2] for name in names if "enc_out" in name} == {"0"}
    assert not any("encoder.layer.2." in name for name in names)
    assert fixed.model.query_feat.weight.shape[0] == detector.config.num_queries
