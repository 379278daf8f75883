"""`rfdetr-hf data preview`: the picture that a run with the same options draws."""

import numpy as np
from helpers.models import tiny_model
from helpers.runs import quick_arguments
from PIL import Image

from rfdetr_hf import RFDETRTrainer, draw_preview, make_shapes_dataset
from rfdetr_hf.cli.main import main


def test_it_is_train_batch_of_the_run(tmp_path):
    """Multi-scale, accumulation and a preset with mosaic included."""
    shapes, options = make_shapes_dataset(12, image_size=64), {"augmentation": {"mosaic": 0.5, "vertical_flip": 0.5}}
    options |= {"plots": True, "max_steps": 4, "multi_scale": "per_batch", "gradient_accumulation_steps": 2}
    args = quick_arguments(tmp_path / "run", close_strong_augmentation_epochs=0, eval_strategy="no", **options)
    model = tiny_model()
    RFDETRTrainer(model, args, shapes).train()
    drawn = draw_preview(shapes, args, model.config, tmp_path / "preview.png")
    theirs, ours = Image.open(tmp_path / "run" / "train_batch.jpg"), tmp_path / "ours.jpg"
    drawn.save(ours, quality=88)
    np.testing.assert_array_equal(np.asarray(Image.open(ours)), np.asarray(theirs))


def test_the_command_draws_and_replaces_nothing(tmp_path, capsys):
    path = tmp_path / "a.png"
    words = ["data", "preview", "synthetic-shapes", "--model", "nano", "--resolution", "128", "--images", "6"]
    words += ["--output", str(path), "--augmentation", "{mosaic: 0.5}"]
    assert main(words) == 0
    size = Image.open(path).size
    assert f"{size[0]} x {size[1]} pixels" in capsys.readouterr().out and size[0] > size[1]
    assert main(words) == 1 and "a.png exists" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert main([*words, "--augmentation", "aerail"]) == 2 and "did you mean 'aerial'" in capsys.readouterr().err
