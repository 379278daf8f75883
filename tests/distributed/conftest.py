import pytest


@pytest.fixture
def job(tmp_path, tiny_config):
    """Builds a job of `worker.py`: `job(name, options={…}, …)`."""
    tiny_config().save_pretrained(tmp_path / "config")

    def build(name, **fields):
        return {"output_dir": str(tmp_path / name), "config": str(tmp_path / "config"), **fields}

    return build
