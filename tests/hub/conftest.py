import contextlib
import importlib

import pytest
from helpers.cards import HISTORY, METRICS

from rfdetr_hf.hub.model_card import CardFacts

from .fake_hub import TOKEN, FakeHub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A running fake Hub that huggingface_hub and transformers of this process talk to, with an empty cache."""
    from huggingface_hub import constants

    with FakeHub() as server:
        cache = str(tmp_path / "hub-cache")
        for name, value in (("ENDPOINT", server.url), ("HF_HUB_CACHE", cache), ("HF_HUB_OFFLINE", False),
                            ("HF_HUB_DISABLE_XET", True)):  # fmt: skip
            monkeypatch.setattr(constants, name, value)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        for module in ("huggingface_hub.hf_api", "huggingface_hub._snapshot_download", "huggingface_hub.file_download",
                       "transformers.utils.hub"):  # fmt: skip
            loaded = importlib.import_module(module)
            for name, value in (("ENDPOINT", server.url), ("HF_HUB_CACHE", cache)):
                with contextlib.suppress(AttributeError):
                    monkeypatch.setattr(loaded, name, value)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", server.url)  # which transformers before 5.17 calls
        # transformers keeps its client, which remembers the address of an earlier test's server.
        monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def facts(tiny_config):
    return CardFacts(
        "mine", "RFDETRForObjectDetection", tiny_config(), 1_234_567, METRICS, {"learning_rate": 1e-4}, HISTORY,
        dataset="user/data", base_model="Roboflow/rf-detr-nano",
    )  # fmt: skip
