"""How numbers stand in messages."""

import pytest

from rfdetr_hf.choices import counted


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((1, "box"), "1 box"), ((0, "box"), "0 boxes"), ((2, "class"), "2 classes"), ((3, "entry"), "3 entries"),
        ((2, "key"), "2 keys"), ((1.0, "epoch"), "1 epoch"), ((1.5, "epoch"), "1.5 epochs"),
        ((1, "picture", "has"), "1 picture has"), ((2, "picture", "has"), "2 pictures have"),
        ((2, "image", "is"), "2 images are"), ((2, "box", "reaches"), "2 boxes reach"),
        ((2, "keypoint", "belongs"), "2 keypoints belong"), ((1234567, "image", "was"), "1234567 images were"),
    ],
)  # fmt: skip
def test_nouns_and_verbs_agree_with_their_number(given, text):
    assert counted(*given) == text
