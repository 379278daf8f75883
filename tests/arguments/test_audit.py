"""Options of a look at data."""

import pytest

from rfdetr_hf import AuditArguments


def test_two_findings_have_two_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for html, json in (("found", "found"), ("found", "./found"), (str(tmp_path / "found"), "found")):
        with pytest.raises(ValueError, match="html and json are both .*found: one would replace the other"):
            AuditArguments(html=html, json=json)
    assert AuditArguments(html="found.html", json="found.json").json == "found.json"
    assert AuditArguments().html is None and AuditArguments(device="1").device == "cuda:1"


@pytest.mark.parametrize("name", ["html", "json"])
def test_what_is_there_is_not_replaced_unless_asked(tmp_path, name):
    taken = tmp_path / "found"
    AuditArguments(**{name: str(taken)}).require_new()
    taken.write_text("mine")
    with pytest.raises(FileExistsError, match=f"--{name} .*found exists; .*--overwrite"):
        AuditArguments(**{name: str(taken)}).require_new()
    AuditArguments(**{name: str(taken)}, overwrite=True).require_new()
    assert taken.read_text() == "mine"
