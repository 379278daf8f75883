"""Options of an export."""

import pytest

from rfdetr_hf import ExportArguments


def test_a_size_is_a_square_or_height_and_width():
    assert ExportArguments("model", size=[64]).size == [64] and ExportArguments("model", size=[64, 96]).size == [64, 96]
    for size in ([], [64, 64, 3]):
        with pytest.raises(ValueError, match="size=.*give one number for a square, or height and width"):
            ExportArguments("model", size=size)


@pytest.mark.parametrize(("format", "suffix"), [("onnx", ".onnx"), ("torch", ".pt2")])
def test_the_file_that_is_looked_for_has_the_suffix_of_the_format(tmp_path, format, suffix):
    (tmp_path / "mine").touch()
    (tmp_path / "mine.txt").touch()
    ExportArguments("model", str(tmp_path / "mine"), format).require_new()
    (tmp_path / f"mine{suffix}").touch()
    for name in ("mine", f"mine{suffix}"):
        with pytest.raises(FileExistsError, match=f"mine{suffix} exists"):
            ExportArguments("model", str(tmp_path / name), format).require_new()
