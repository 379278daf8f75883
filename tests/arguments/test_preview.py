"""Options of a preview."""

import pytest

from rfdetr_hf import PreviewArguments


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "folder/a.png"])
def test_names_of_pictures_are_taken(name):
    assert PreviewArguments(output=name).output == name


@pytest.mark.parametrize("name", ["a", "a.gif", "jpg"])
def test_names_of_no_picture_are_refused(name):
    with pytest.raises(ValueError, match="output=.*ends in .jpg or .png"):
        PreviewArguments(output=name)


def test_a_picture_that_is_there_is_not_replaced_unless_asked(tmp_path):
    path = tmp_path / "preview.png"
    PreviewArguments(output=str(path)).require_new()
    path.touch()
    with pytest.raises(FileExistsError, match="--output .*preview.png exists; .*--overwrite"):
        PreviewArguments(output=str(path)).require_new()
    PreviewArguments(output=str(path), overwrite=True).require_new()
