import pytest


def jobs_in(folder, config):
    """Builds jobs of `worker.py` that run in a folder: `build(name, options={…}, …)`."""
    config.save_pretrained(folder / "config")

    def build(name, **fields):
        return {"output_dir": str(folder / name), "config": str(folder / "config"), **fields}

    return build


@pytest.fixture
def job(tmp_path, tiny_config):
    return jobs_in(tmp_path, tiny_config())


@pytest.fixture(scope="module")
def shared_job(tmp_path_factory, tiny_config):
    """Jobs whose run several tests compare with."""
    return jobs_in(tmp_path_factory.mktemp("shared"), tiny_config())
