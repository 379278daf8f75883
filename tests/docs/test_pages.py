"""The API reference is current, and links lead somewhere."""

import importlib.util
import re

import pytest
from blocks import ROOT, documents


@pytest.fixture(scope="module")
def make_api():
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_api_reference_is_current(make_api):
    current = make_api.PAGE.read_text(encoding="utf-8")
    assert current == make_api.make(), "run python docs/make_api.py"


def test_every_public_name_is_in_the_api_reference(make_api):
    import rfdetr_hf

    listed = re.findall(r"^### `(\w+)", make_api.PAGE.read_text(encoding="utf-8"), re.M)
    assert sorted(listed) == sorted(name for name in rfdetr_hf.__all__ if not name.startswith("_"))
    assert not re.search(r"rfdetr_hf\.\w", make_api.make()), "the page shows another path than the top level"


@pytest.mark.parametrize("document", [*documents(), "docs/api.md", "CHANGELOG.md"])
def test_links_lead_somewhere(document):
    path = ROOT / document
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert "://" in target or (path.parent / target).exists(), f"{document}: {target} does not exist"


@pytest.mark.parametrize("document", [*documents(), "docs/api.md", "CHANGELOG.md"])
def test_no_path_of_a_machine(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    assert not re.search(r"(?:^|[\s(`])/(?:home|root|work|tmp|Users)/", text)
