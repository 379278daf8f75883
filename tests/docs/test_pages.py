"""The API reference is current, links lead somewhere, and every page is in the index."""

import re

import pytest
from helpers.documents import documents
from helpers.scripts import ROOT, load_script

import rfdetr_hf

PAGES = [*documents(), "docs/reference/api.md", "CHANGELOG.md"]


@pytest.fixture(scope="module")
def make_api():
    return load_script("docs/make_api.py")


def test_api_reference_is_current(make_api):
    assert make_api.PAGE.read_text(encoding="utf-8") == make_api.make(), "run python docs/make_api.py"


def test_every_public_name_is_in_the_api_reference(make_api):
    page = make_api.make()
    headings = re.findall(r"^### `(\w+)", page, re.M)
    assert sorted(headings) == sorted(name for name in rfdetr_hf.__all__ if not name.startswith("_"))
    assert not re.search(r"rfdetr_hf\.\w", page), "the page shows another path than the top level"


def anchors(text):
    """The anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", PAGES)
def test_links_lead_somewhere(document):
    path = ROOT / document
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            file = path.parent / target if target else path
            assert file.exists(), f"{document}: {target} does not exist"
            assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), f"{document}: #{anchor}"


def test_the_index_names_every_page():
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)", index.read_text())}
    pages = set((ROOT / "docs").rglob("*.md")) - {index}
    assert {str(page.relative_to(ROOT)) for page in pages - linked} == set()


@pytest.mark.parametrize("document", PAGES)
def test_no_path_of_a_machine(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    assert not re.search(r"(?:^|[\s(`])/(?:home|root|work|tmp|Users)/", text)
