"""The test utilities of the installed Transformers, from its own source distribution.

The wheel has no tests. The source distribution has the files of `tests/` itself, with the mixins for models,
configurations and image processors, and none of its subfolders: modules of subfolders that the mixins import are
replaced by empty ones here, and so is the helper that downloads pictures.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import transformers

PACKAGE = "transformers_tests"
# What the mixins import and the distribution lacks: file -> the least text that lets them be imported.
STAND_INS = {
    "__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {'output_hidden_states': True}\n",
}
FETCHING = """
import pathlib


def url_to_local_path(url):
    return str(pathlib.Path(__file__).with_name("picture.png"))
"""


class Unavailable(Exception):
    """The source distribution, or a package that its tests import, cannot be had; the message says why."""


def unpacked_tests(folder: Path) -> Path:
    """Put the package `transformers_tests` into a folder below `folder` that can be set on the path, and return that.

    `RFDETR_TEST_CACHE` names a folder that keeps it between runs.

    Raises:
        Unavailable: without a network, for an installation from source, ...
    """
    folder = Path(os.environ.get("RFDETR_TEST_CACHE") or folder) / f"transformers-{transformers.__version__}"
    if not (folder / PACKAGE / "test_modeling_common.py").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _pip("download", "--no-deps", "--no-binary", ":all:", f"transformers=={transformers.__version__}", "-d", folder)
        _pip("install", "--no-deps", "--target", folder / "needs", "parameterized")
        _unpack(next(folder.glob("transformers-*.tar.gz")), folder / PACKAGE)
        _write_stand_ins(folder)
    return folder


def _pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"pip {arguments[0]} took longer than {error.timeout} s") from error
    if done.returncode:
        raise Unavailable(f"pip {arguments[0]}: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}")


def _unpack(archive: Path, package: Path) -> None:
    package.mkdir()
    with tarfile.open(archive) as files:
        for member in files:
            parts = Path(member.name).parts
            if len(parts) == 3 and parts[1] == "tests" and member.isfile():
                (package / parts[2]).write_bytes(files.extractfile(member).read())
    if not (package / "test_modeling_common.py").is_file():
        raise Unavailable(f"{archive.name} has no tests/test_modeling_common.py")


def _write_stand_ins(folder: Path) -> None:
    for name, text in STAND_INS.items():
        path = folder / PACKAGE / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    # The mixins put "utils" beside their package on the path.
    (folder / "utils").mkdir()
    (folder / "utils" / "fetch_hub_objects_for_ci.py").write_text(FETCHING, encoding="utf-8")
    from PIL import Image

    Image.radial_gradient("L").resize((640, 480)).convert("RGB").save(folder / "utils" / "picture.png")
