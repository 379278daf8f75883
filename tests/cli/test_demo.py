"""`rfdetr-hf demo`: what is served, and where."""

import pytest

import rfdetr_hf
from rfdetr_hf.cli.main import main


@pytest.fixture
def served(monkeypatch):
    """What `build_demo` and `launch` were given."""
    calls = []

    class Page:
        def launch(self, **options):
            calls.append(options)

    monkeypatch.setattr(rfdetr_hf, "build_demo", lambda *given: calls.append(given) or Page(), raising=False)
    return calls


def test_options_reach_the_page_and_its_server(served):
    words = ["demo", "my/model", "--device", "1", "--threshold", "0.25", "--host", "0.0.0.0", "--port", "8000"]
    assert main(words) == 0
    server = {"server_name": "0.0.0.0", "server_port": 8000, "share": False}
    assert served == [("my/model", "cuda:1", 0.25), server]


def test_a_page_is_of_this_machine_unless_asked(served):
    assert main(["demo", "my/model"]) == 0
    assert served[1] == {"server_name": "127.0.0.1", "server_port": None, "share": False}


def test_a_page_without_a_model_is_misuse(served, capsys):
    assert main(["demo"]) == 2
    assert "MODEL" in capsys.readouterr().err and served == []
