"""The image processor of a run: what it keeps of the one beside the checkpoint, and what it says of the rest."""

import pytest
from helpers.runs import quick_arguments

from rfdetr_hf import RFDETRForObjectDetection, RFDETRImageProcessor, RFDETRTrainer


@pytest.mark.parametrize(
    ("stored", "options", "said"),
    [
        ({}, {}, []),
        ({"size": {"height": 96, "width": 64}}, {}, ["has size={'height': 96, 'width': 64}, and this run"]),
        ({"do_pad": False}, {"square_resize": False}, ["do_pad=False", "size_divisor=None"]),
        ({"do_resize": False}, {}, ["has do_resize=False, and this run evaluates and saves do_resize=True"]),
        ({"resample": 3}, {}, ["evaluation resizes bicubic, as the image processor says, and training bilinear"]),
        ({"image_mean": (0.1, 0.2, 0.3), "antialias": True}, {}, ["image_mean=[0.1, 0.2, 0.3], antialias=True of"]),
    ],
)  # fmt: skip
def test_what_a_run_changes_of_a_stored_processor_is_said(tiny_model, tmp_path, caplog, stored, options, said):
    caplog.set_level("INFO", logger="rfdetr_hf")
    tiny_model().save_pretrained(tmp_path)
    RFDETRImageProcessor(**{"size": {"height": 64, "width": 64}, **stored}).save_pretrained(tmp_path)
    model = RFDETRForObjectDetection.from_pretrained(tmp_path)
    caplog.clear()
    processor = RFDETRTrainer(model, quick_arguments(tmp_path / "run", eval_strategy="no", **options)).image_processor
    for text in said:
        assert text in caplog.text
    assert ("preprocessor_config" in caplog.text) == bool(said)
    colours = {name: stored[name] for name in ("resample", "image_mean", "antialias") if name in stored}
    assert {name: getattr(processor, name) for name in colours} == colours


def test_a_processor_that_does_not_resize_has_no_resampling(tiny_model, tmp_path, shapes, caplog):
    for resample in (None, 3):
        processor = RFDETRImageProcessor(do_resize=False, resample=resample)
        args = quick_arguments(tmp_path / str(resample))
        assert RFDETRTrainer(tiny_model(), args, eval_dataset=shapes, image_processor=processor).evaluate()
    assert "evaluation resizes" not in caplog.text
