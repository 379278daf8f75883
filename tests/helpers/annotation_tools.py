"""Runs the annotation tools' own exporters, in a Python of their own: their requirements are not ours."""

import os
import subprocess
from pathlib import Path

import pytest


def run_tools(code: str, *arguments: object) -> str:
    """Run Python code where datumaro, label-studio-sdk and lvis are installed, and return what it prints.

    `RFDETR_ANNOTATION_TOOLS` names that Python; the test is skipped without it.
    """
    python = os.environ.get("RFDETR_ANNOTATION_TOOLS")
    if not python or not Path(python).exists():
        pytest.skip("set RFDETR_ANNOTATION_TOOLS to a Python with datumaro, label-studio-sdk and lvis")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
