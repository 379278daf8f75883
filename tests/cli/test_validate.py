import json

from rfdetr_hf.cli import validate
from rfdetr_hf.cli.main import main


def test_fit_trains_and_validate_scores(run_yaml, shapes_folder, tmp_path, capsys):
    assert main(["fit", "--config", str(run_yaml)]) == 0
    folder = tmp_path / "run" / "last"
    assert (folder / "model.safetensors").is_file()
    out = tmp_path / "metrics.json"
    model = ["--model_name_or_path", str(folder), "--num_workers", "0", "--dataset_name", str(shapes_folder)]
    assert main(["validate", *model, "--output", str(out)]) == 0
    assert {"eval_map", "eval_map_50"} <= json.loads(out.read_text()).keys()
    assert main(["validate", *model, "--output", str(out)]) == 1
    capsys.readouterr()
    assert main(["test", *model]) == 0
    assert '"test_map"' in capsys.readouterr().out
    assert main(["fit", "--config", str(run_yaml)]) == 1
    assert "holds an earlier run" in capsys.readouterr().err


def test_the_device_is_told_to_accelerate_and_forgotten(monkeypatch):
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE", raising=False)
    with validate._on("cpu"):
        assert validate.os.environ["ACCELERATE_TORCH_DEVICE"] == "cpu"
    assert "ACCELERATE_TORCH_DEVICE" not in validate.os.environ
