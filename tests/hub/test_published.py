"""From the name of a variant to a trained model: the published checkpoint on the Hub, and what is said without it."""

import json
import time

import pytest
import torch
from datasets import DatasetDict
from helpers.scripts import load_script
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file

from rfdetr_hf import RFDETRForObjectDetection, RFDETRImageProcessor, make_shapes_dataset
from rfdetr_hf.cli.main import main
from rfdetr_hf.models.files import published as names

from .fake_hub import Repo

plain = pytest.importorskip("transformers.models.rf_detr.modeling_rf_detr")
NANO = "Roboflow/rf-detr-nano"
LABELS = {0: "N/A", 1: "circle", 2: "square", 3: "triangle", 4: "zebra"}
WAYS = ("a model folder (config.json and model.safetensors)", "such as rf-detr-nano.pth",
        "--from_scratch --model nano")  # fmt: skip
# As in the published repositories.
PROCESSOR = {
    "do_convert_annotations": True, "do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True,
    "format": "coco_detection", "image_mean": [0.485, 0.456, 0.406], "image_processor_type": "DetrImageProcessor",
    "image_std": [0.229, 0.224, 0.225], "resample": 2, "rescale_factor": 1 / 255, "size": {"height": 64, "width": 64},
    "use_fast": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files of a small model as plain transformers writes the published ones."""
    from transformers import RfDetrConfig

    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    encoder = {
        "model_type": "rf_detr_dinov2", "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3,
        "out_indices": [1, 2, 3], "patch_size": 8, "image_size": 64, "num_windows": 2,
    }  # fmt: skip
    config = RfDetrConfig(
        d_model=32, decoder_self_attention_heads=4, decoder_cross_attention_heads=4, decoder_ffn_dim=48,
        decoder_layers=2, num_queries=6, group_detr=3, intermediate_size=128, backbone_config=encoder,
        id2label=LABELS, label2id={name: i for i, name in LABELS.items()},
    )  # fmt: skip
    plain.RfDetrForObjectDetection(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def published(hub, files):
    repo = hub.repos[NANO] = Repo()
    repo.commit("weights", files)
    return hub


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    DatasetDict(train=make_shapes_dataset(4, image_size=64), validation=make_shapes_dataset(2, image_size=64)
                ).save_to_disk(folder)  # fmt: skip
    return str(folder)


def fit(model, data, tmp_path, *more):
    return main(
        ["fit", "--model_name_or_path", model, "--dataset_name", data, "--output_dir", str(tmp_path / "run"), *more,
         "--max_steps", "1", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1",
         "--dataloader_num_workers", "0", "--multi_scale", "off", "--learning_rate", "1e-9", "--save_strategy", "no",
         "--eval_strategy", "no", "--audit", "off", "--disable_tqdm"]
    )  # fmt: skip


def test_a_variant_is_fetched_fitted_to_the_classes_and_trained(published, files, data, tmp_path):
    assert fit("nano", data, tmp_path) == 0
    config = json.loads((tmp_path / "run" / "last" / "config.json").read_text())
    names_of_data = make_shapes_dataset(1).features["objects"]["category"].feature.names
    assert [config["id2label"][str(i)] for i in range(3)] == names_of_data
    (tmp_path / "stored").mkdir()
    (tmp_path / "stored" / "model.safetensors").write_bytes(files["model.safetensors"])
    before = load_file(tmp_path / "stored" / "model.safetensors")["class_embed.weight"]
    after = load_file(tmp_path / "run" / "last" / "model.safetensors")["class_embed.weight"]
    torch.testing.assert_close(after[names_of_data.index("circle")], before[1], atol=1e-6, rtol=0)  # kept by its name
    assert "base_model: Roboflow/rf-detr-nano" in (tmp_path / "run" / "last" / "README.md").read_text()


def test_python_takes_the_name_too(published):
    model = RFDETRForObjectDetection.from_pretrained("nano")
    assert model.config.id2label == LABELS and model.name_or_path == NANO
    assert RFDETRImageProcessor.from_pretrained("nano").size == {"height": 64, "width": 64}


def offline(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def private(hub, monkeypatch):
    hub.repos[NANO].private = True
    monkeypatch.setenv("HF_TOKEN", "hf_other")


def gated(hub, monkeypatch):
    hub.fail("resolve", 403, times=9)


def refused(hub, monkeypatch):
    hub.fail("resolve", 401, times=9)


def unknown(hub, monkeypatch):
    del hub.repos[NANO]


def unreachable(hub, monkeypatch):
    hub.server.shutdown()
    hub.server.server_close()
    hub.server.shutdown = lambda: None


def cut_off(hub, monkeypatch):
    hub.cut["model.safetensors"] = 1000
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the attempts of the client


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (offline, "it is not in the cache of the Hub, and HF_HUB_OFFLINE forbids to ask the Hub"),
        (private, "the Hub knows no such repository or keeps it private (HTTP 404); for a private one log in"),
        (gated, "accept them at https://huggingface.co/Roboflow/rf-detr-nano and log in"),
        (refused, "the Hub knows no such repository or keeps it private (HTTP 401)"),
        (unknown, "the Hub knows no such repository"),
        (unreachable, "the connection to http://127.0.0.1"),
        (cut_off, "peer closed connection"),
    ],
)
def test_without_the_checkpoint_the_ways_on_are_said_before_the_data_is_read(
    published, monkeypatch, data, tmp_path, capsys, problem, reason
):
    problem(published, monkeypatch)
    started = time.monotonic()
    assert fit("nano", data, tmp_path) == 1
    assert time.monotonic() - started < 20
    out, err = capsys.readouterr()
    message = err.splitlines()[-1]
    assert message.startswith("rfdetr-hf: Roboflow/rf-detr-nano cannot be loaded: ") and reason in message
    assert all(way in message for way in WAYS)
    assert not out and not (tmp_path / "run").exists()


def test_a_damaged_file_in_the_cache_is_named(published, files, data, tmp_path, capsys):
    published.repos[NANO].commit("damaged", {**files, "model.safetensors": files["model.safetensors"][:1000]})
    assert fit("nano", data, tmp_path) == 1
    assert "model.safetensors is no complete safetensors file" in capsys.readouterr().err


def test_local_data_that_is_missing_is_said_before_the_hub_is_asked(published, tmp_path, capsys):
    missing = str(tmp_path / "no" / "data")
    assert fit("nano", missing, tmp_path) == 1
    assert "no/data: no such folder" in capsys.readouterr().err and not published.requests
    for verb in ("evaluate", "validate"):
        assert main([verb, "nano", missing]) == 1
        assert "no/data: no such folder" in capsys.readouterr().err and not published.requests


def test_a_folder_with_the_name_of_a_variant_wins_if_it_is_a_model_folder(files, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    names._say_once.cache_clear()
    (tmp_path / "nano").mkdir()
    assert names.checkpoint_of("nano") == NANO and "has no config.json" in caplog.text
    for name, content in files.items():
        (tmp_path / "nano" / name).write_bytes(content)
    assert RFDETRForObjectDetection.from_pretrained("nano").config.id2label == LABELS
    assert f"'nano' is the folder {tmp_path / 'nano'} here, not the published {NANO}" in caplog.text


def test_a_path_that_is_not_there_does_not_exist(hub):
    for source in ("outputs/of/mine", "./outputs"):
        with pytest.raises(FileNotFoundError, match=f"{source} does not exist"):
            RFDETRForObjectDetection.from_pretrained(source)
    with pytest.raises(FileNotFoundError, match="outputs/best cannot be loaded: there is no such folder here, and "):
        RFDETRForObjectDetection.from_pretrained("outputs/best")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("nanno", "nano"), ("rf-detr-nano", "nano"), ("rfdetr_seg_small", "seg-small"), ("yolov8n", None), ("run7", None)],
)
def test_a_word_that_is_no_variant_is_told_without_the_hub(hub, name, meant):
    with pytest.raises(FileNotFoundError, match=f"^{name}: there is no such folder here, and no variant") as error:
        RFDETRForObjectDetection.from_pretrained(name)
    said = str(error.value)
    assert ("did you mean" in said) == (meant is not None) and not hub.requests
    assert f"did you mean {meant!r}?" in said or meant is None
    assert "The variants are nano, small, " in said and f"--from_scratch --model {meant or 'nano'}" in said


def test_an_id_of_the_hub_that_is_close_to_a_variant(hub):
    with pytest.raises(FileNotFoundError, match="knows no such repository.*did you mean .small.[?]"):
        RFDETRForObjectDetection.from_pretrained("roboflow/rf-detr-smal")


def test_the_tool_compares_what_the_hub_has(published, files, data, capsys, tmp_path):
    """The stand-in has the layout of the published file, but not its sizes."""
    tool = load_script("tools/verify_published.py")
    assert tool.main(["--variants", "nano", "--coco", data]) == 1
    out = capsys.readouterr().out
    found = {line[11:31].strip(): line for line in out.splitlines() if line.startswith("  ")}
    assert found["tensors"].startswith("  ok") and "in the file" in found["tensors"]
    assert found["plain transformers"].startswith("  ok") and "logits differ by at most" in found["plain transformers"]
    assert "DIFFERS" in found["configuration"] and "d_model 32, not 256" in found["configuration"]
    assert "DIFFERS" in found["parameters"] and "published 30,467,298" in found["parameters"]
    assert "DIFFERS" in found["COCO AP"] and "on 2 images, published 48.0 or 48.4" in found["COCO AP"]
    assert out.endswith("3 comparisons failed\n")

    path = tmp_path / "model.safetensors"
    path.write_bytes(files["model.safetensors"])
    state = load_file(path)
    names = {name.removeprefix("model.") for name in state} - {"class_embed.bias"} | {"other.bias"}
    check = tool.tensors(RFDETRForObjectDetection.from_pretrained("nano"), names)
    assert not check.holds and "class_embed.bias" in check.found and "other.bias" in check.found
    published.repos.clear()
    assert tool.main(["--variants", "small"]) == 1
    assert "FAILED   Roboflow/rf-detr-small cannot be loaded" in capsys.readouterr().out


@pytest.mark.parametrize("source", ["nano", "keypoint-preview", "nanno", "Roboflow/rf-detr-nano", "me/mine"])
def test_who_wants_to_predict_is_offered_no_random_weights(hub, source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    picture = str(tmp_path / "photo.jpg")
    Image.new("RGB", (32, 32)).save(picture)
    out = str(tmp_path / "out")
    assert main(["predict", source, picture, "--output_dir", out]) == 1
    told = capsys.readouterr().err
    assert source in told and "Give a model folder" in told and "official package such as rf-detr-" in told
    assert "from_scratch" not in told and "train" not in told
    assert main(["fit", "--model", source, "--output_dir", out]) == 1
    assert "to train with random weights: --from_scratch" in capsys.readouterr().err
