"""Choices of options, and texts for messages."""

import pytest
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType

from rfdetr_hf import RFDETRConfig, choices


def test_the_words_that_are_written_down_are_those_of_their_owners():
    assert choices.VARIANTS == tuple(RFDETRConfig.variants())
    assert choices.INTERVALS == tuple(each.value for each in IntervalStrategy)
    assert choices.SAVES == tuple(each.value for each in SaveStrategy)
    theirs = {each.value for each in SchedulerType}
    assert set(choices.SCHEDULES) - set(choices.OWN_SCHEDULES) <= theirs
    assert theirs <= {*choices.SCHEDULES, *choices.METRIC_DRIVEN_SCHEDULES}


def test_names_that_differ_in_case_and_blanks_are_alike():
    assert choices.names_alike(["Traffic Light", "cat", "traffic light"]) == ["Traffic Light", "traffic light"]
    assert choices.names_alike(["Straße", "STRASSE"]) == ["Straße", "STRASSE"]
    assert choices.names_alike(["cat", "cat", "dog"]) == [], "equal names are one"
    assert choices.names_alike(["a1", "b2", "c1"], kind=lambda name: name[-1]) == ["a1", "c1"]


def test_no_name_makes_a_line_or_colours_a_terminal():
    shown = choices.printable("a\nb\x1b[31mc\u2028d\x9be ü\U0001f600")
    assert shown == "a\ufffdb\ufffd[31mc\ufffdd\ufffde ü\U0001f600"


def test_files_of_the_official_package_are_known_by_their_suffix():
    assert all(map(choices.is_official, ("a.pth", "A.PT", "folder/x.ckpt")))
    assert not any(map(choices.is_official, ("a.pth/model", "pth", "a.safetensors")))


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
    assert choices.counted(*given) == text
