import json
import os
import subprocess
import sys
from pathlib import Path

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook_launcher.ipynb"


def test_the_cells_of_the_notebook_run_in_their_order(tmp_path):
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for written, short in (
        ("max_steps=400", "max_steps=2"),
        ('load_detection_dataset("synthetic-shapes")', 'load_detection_dataset("synthetic-shapes", **SMALL)'),
    ):
        assert written in code
        code = code.replace(written, short)
    sizes = "SMALL = {'num_images': 16, 'num_eval_images': 4}\n"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [sys.executable, "-c", sizes + code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs" / "notebook" / "best" / "model.safetensors").is_file()
