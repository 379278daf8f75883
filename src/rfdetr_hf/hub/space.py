"""The demo of a model as a Space of the Hub: its app, the package, pinned requirements, a card."""

import json
import re
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from string import Template

from huggingface_hub import HfApi, RepoCard
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

from ..choices import install_hint

# What the demo imports; a test compares.
REQUIREMENTS = (
    "gradio", "torch", "transformers", "accelerate", "datasets", "safetensors", "huggingface-hub", "pycocotools",
    "numpy", "scipy", "pillow", "pyyaml",
)  # fmt: skip
TAG = "rfdetr-hf-demo"
_MODEL_FILES = ("config.json", "preprocessor_config.json", "README.md", "model*.safetensors*", "*.png")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_APP = '''"""Made by `rfdetr-hf demo --space`; run it anywhere: pip install -r requirements.txt && python app.py"""

from rfdetr_hf import build_demo

demo = build_demo({model}, title={title})

if __name__ == "__main__":
    demo.launch()
'''


def write_space(folder: str | Path, model: str, title: str) -> None:
    """Write the demo of a model as a Space into an empty folder.

    The folder holds the package as it runs here, so nothing but the pinned requirements is installed there.

    Args:
        folder: where to.
        model: a Hub id, to which the Space refers, or a model folder, which is copied into it.
        title: of the Space.

    Raises:
        ValueError: `model` is neither.
        ImportError: gradio, whose version the Space is pinned to, or another requirement is not installed.
    """
    folder = Path(folder)
    local = Path(model).is_dir()
    if not local and (not _HUB_ID.fullmatch(model) or Path(model).exists()):
        raise ValueError(
            f"{model} is neither a model folder nor a Hub id: make a folder of it first (rfdetr-hf convert FILE FOLDER)"
        )
    package = Path(__file__).parents[1]
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    card: str | None = f"https://huggingface.co/{model}"
    if local:
        (folder / "model").mkdir()
        for file in {path for pattern in _MODEL_FILES for path in Path(model).glob(pattern)}:
            shutil.copyfile(file, folder / "model" / file.name)
        card = "model/README.md" if (folder / "model" / "README.md").is_file() else None
    try:
        versions = {name: version(name).split("+")[0] for name in REQUIREMENTS}
    except PackageNotFoundError as error:
        raise ImportError(f"the Space needs the version of {error.name} here; {install_hint('demo')}") from error
    (folder / "requirements.txt").write_text("".join(f"{name}=={number}\n" for name, number in versions.items()))
    names = {"model": json.dumps("model" if local else model), "title": json.dumps(title, ensure_ascii=False)}
    (folder / "app.py").write_text(_APP.format(**names), encoding="utf-8")
    values = {
        "title": json.dumps(title, ensure_ascii=False),
        "gradio": versions["gradio"],
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "models": "" if local else f"models:\n- {model}\n",
        "model": "the model of this Space" if local else f"`{model}`",
        "card": "" if card is None else f"\n[The model card]({card}) says what it was trained on and how good it is.\n",
        "tag": TAG,
    }
    template = files("rfdetr_hf.hub").joinpath("templates/space.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(Template(template).substitute(values), encoding="utf-8")


def push_space(repo_id: str, model: str, title: str = "", token: str | None = None, private: bool | None = None) -> str:
    """Make or update the Space `repo_id` with the demo of a model.

    Args:
        repo_id: user/name.
        model, title: see `write_space`; default of the title: the name of the Space.
        token: of the Hub; default: the one of the machine's login.
        private: whether a new Space is private; default: the account's setting.

    Returns:
        The address of the Space.

    Raises:
        FileExistsError: there is such a Space with another app.
        ValueError, ImportError: see `write_space`.
    """
    api = HfApi(token=token, library_name="rfdetr_hf")
    with tempfile.TemporaryDirectory() as scratch:
        write_space(scratch, model, title or repo_id.split("/")[-1])
        _check_is_ours(api, repo_id)
        url = api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id,
            repo_type="space",
            folder_path=scratch,
            commit_message=f"Demo of {model}",
            delete_patterns=["rfdetr_hf/**", "model/**"],  # of an earlier version
        )
    return str(url)


def _check_is_ours(api: HfApi, repo_id: str) -> None:
    tags: list[str] = []
    try:
        path = api.hf_hub_download(repo_id, "README.md", repo_type="space")
        tags = RepoCard.load(path, ignore_metadata_errors=True).data.get("tags") or []
    except RepositoryNotFoundError:
        return
    except LocalEntryNotFoundError:  # the Hub was not reached: nothing is known
        raise
    except EntryNotFoundError:
        pass
    if TAG not in tags and api.file_exists(repo_id, "app.py", repo_type="space"):
        raise FileExistsError(f"the Space {repo_id} has another app: choose another name, or delete its app.py")
