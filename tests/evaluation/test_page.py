"""Pieces of an HTML page: nothing in it runs, whatever its texts hold."""

import base64
from html.parser import HTMLParser

from rfdetr_hf.evaluation.page import figure, page, picture, table, text


class _Tags(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, content: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


NASTY = "<script>alert(1)</script> \" onload='x' \u202e \x00 &amp;"


def test_texts_show_as_they_are_and_change_nothing():
    assert text("a < b & \"c\" 'd'") == "a &lt; b &amp; &quot;c&quot; &#x27;d&#x27;" and text(3) == "3"
    assert text("left\u202eright\x07\ttab\n") == "left\ufffdright\ufffd\ttab\n"


def test_no_text_becomes_a_tag_or_an_attribute():
    body = [table([["name", NASTY], [NASTY, "1"]], lines=[NASTY]), figure(b"x", "png", NASTY, NASTY)]
    tags = _Tags(page(NASTY, body)).tags
    names = {tag for tag, _ in tags}
    assert "script" not in names and not {name for _, attrs in tags for name in attrs if name.startswith("on")}
    policy = [attrs["content"] for tag, attrs in tags if tag == "meta" and "http-equiv" in attrs]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_cells_know_their_heading_and_a_line_spans_the_table():
    tags = _Tags(table([["class", "AP"], ["cat", "0.5"], ["dog", "0.25"]], "wide", ["sees few", "sees all"])).tags
    named = [attrs["data-name"] for tag, attrs in tags if tag == "td" and "data-name" in attrs]
    assert named == ["class", "AP"] * 2 and tags[0] == ("table", {"class": "wide"})
    assert [attrs["colspan"] for tag, attrs in tags if "colspan" in attrs] == ["2", "2"]


def test_the_bytes_of_a_picture_are_in_the_page(tmp_path):
    (tmp_path / "curve.png").write_bytes(b"\x89PNG bytes")
    (image,) = [attrs for tag, attrs in _Tags(picture(tmp_path / "curve.png", kind="wide chart")).tags if tag == "img"]
    media, _, content = str(image["src"]).partition(",")
    assert media == "data:image/png;base64" and base64.b64decode(content) == b"\x89PNG bytes"
    assert image["alt"] == "curve" and image["class"] == "chart"
