"""What `import rfdetr_hf` and `--help` cost: neither loads PyTorch or Transformers."""

import resource
import subprocess
import sys

import pytest

from rfdetr_hf.cli.main import VERBS

HEAVY = ("torch", "transformers", "datasets", "accelerate", "numpy", "PIL", "huggingface_hub", "pycocotools", "scipy")
HELP = """
import sys
from rfdetr_hf.cli.main import main
try:
    main({words!r})
finally:
    print("LOADED", *sorted({{name.split(".")[0] for name in sys.modules}} & set({heavy!r})))
"""


def processor_seconds(code, limit):
    """Output and processor time of a Python process: the shortest of some runs, since the first may write byte code."""
    shortest = float("inf")
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        shortest = min(shortest, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if shortest < limit:
            break
    return out, shortest


@pytest.mark.parametrize("words", [["--help"], *([*verb.split(), "--help"] for verb in VERBS)], ids=" ".join)
def test_help_loads_nothing_heavy_and_takes_half_a_second(words):
    out, seconds = processor_seconds(HELP.format(words=words, heavy=HEAVY), 0.5)
    assert out.startswith("usage: rfdetr-hf") and out.rstrip().endswith("LOADED")
    assert seconds < 0.5


def test_the_import_takes_a_tenth_of_a_second():
    alone = processor_seconds("pass", 0.0)[1]
    assert processor_seconds("import rfdetr_hf", alone + 0.1)[1] - alone < 0.1
