import numpy as np
import pytest
import torch
from helpers.scripts import ROOT, load_script
from PIL import Image


@pytest.fixture
def compare():
    return load_script("tools/compare_losses.py")


def write_metrics(folder, *rows):
    folder.mkdir()
    lines = ["step,epoch,loss,loss_ce,eval_map", *rows]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


def test_show_batch(tmp_path, capsys):
    output = tmp_path / "batch.png"
    load_script("tools/show_batch.py").main(
        ["--config", str(ROOT / "examples/configs/quickstart.yaml"), "--batches", "2", "--output", str(output)]
        + ["--per_device_train_batch_size", "3"]
    )
    image = Image.open(output)
    assert image.size == (3 * 288 + 2 * 4, 2 * 288 + 4)
    assert "872 x 580 pixels" in capsys.readouterr().out


def test_boxes_are_drawn_where_they_are():
    pixels = torch.zeros(3, 160, 320, dtype=torch.uint8)
    draw_image = load_script("tools/show_batch.py").draw_image
    picture = np.asarray(draw_image(pixels, torch.tensor([[0.5, 0.5, 0.5, 0.5]]), [0], [""]))
    drawn = picture.any(-1)
    assert drawn[40, 80:240].all() and drawn[40:120, 80].all() and drawn[120, 80:240].all()
    assert not drawn[:40].any() and not drawn[:, :80].any() and not drawn[50:110, 90:230].any()


def test_equal_curves(compare, tmp_path, capsys):
    a = write_metrics(tmp_path / "a", "1,0.1,2.0,1.0,", "2,0.2,1.0,0.5,", "2,0.2,,,0.3")
    b = write_metrics(tmp_path / "b", "1,0.1,2.00001,1.0,", "2,0.2,1.0,0.5,", "3,0.3,9.0,9.0,")
    assert compare.main([a, b, "--rtol", "1e-4"]) == 0
    assert capsys.readouterr().out.count("equal") == 2


def test_different_curves(compare, tmp_path, capsys):
    a = write_metrics(tmp_path / "a", "1,0.1,2.0,1.0,", "2,0.2,1.0,0.5,", "3,0.3,1.0,nan,")
    b = write_metrics(tmp_path / "b", "1,0.1,2.0,1.0,", "2,0.2,1.1,0.5,", "3,0.3,2.0,0.5,")
    assert compare.main([a, b]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "5.00e-01 at step 3; beyond 1e-05 from step 2 on" in lines[0] and "inf at step 3" in lines[1]


def test_curves_that_cannot_be_compared(compare, tmp_path, capsys):
    a = write_metrics(tmp_path / "a", "1,0.1,2.0,1.0,")
    b = write_metrics(tmp_path / "b", "2,0.1,2.0,,")
    assert compare.main([a, b]) == 1
    assert capsys.readouterr().out.count("no step in common") == 2
    with pytest.raises(ValueError, match="has no loss"):
        compare.read_curves(write_metrics(tmp_path / "c", "1,0.1,,,0.5"))
