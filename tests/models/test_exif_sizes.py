from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from rfdetr_hf import RFDETRImageProcessor


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_processor_gives_back_the_size_that_boxes_are_in(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (120, 160)).save(tmp_path / "a.jpg", exif=exif)
    processor = RFDETRImageProcessor(size={"height": 96, "width": 96})
    inputs = processor(Image.open(tmp_path / "a.jpg"), return_tensors="pt")
    height, width = (120, 160) if orientation in (6, 8) else (160, 120)
    assert inputs.original_sizes == [(height, width)] and "original_sizes" not in dict(inputs)
    logits = torch.full((1, 3, 2), -9.0)
    logits[0, 0, 0] = 9
    outputs = SimpleNamespace(logits=logits, pred_boxes=torch.tensor([[[0.5, 0.25, 0.5, 0.5]] * 3]))
    found = processor.post_process_object_detection(outputs, 0.5, target_sizes=inputs.original_sizes)[0]
    assert found["boxes"][0].tolist() == pytest.approx([width / 4, 0, width * 3 / 4, height / 2])
