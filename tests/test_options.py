"""What stands in no message: secrets, terminal codes, and lines that a name makes."""

import logging

import pytest

from rfdetr_hf import (
    ModelArguments,
    find_images,
    load_detection_dataset,
    message_text,
    parse_arguments,
    status_line,
)
from rfdetr_hf.cli.main import main
from rfdetr_hf.options import load_yaml, to_yaml, without_secrets
from rfdetr_hf.training.console import log_to_file, stop_logging
from rfdetr_hf.training.status import RunStatus

SECRET = "hf_" + "SecretOfTheHub" * 2 + "Secret"  # 34 signs, as the Hub has them
ADDRESSES = [
    f"https://me:{SECRET}@host/x",
    "https://me:one@SECRET@host/x",
    f"https://host/x?a=1&X-Amz-Credential={SECRET}&X-Amz-Signature=SECRET",
    "https://account.blob.core/x?sv=1&sig=SECRET",
    f"no address, a token: {SECRET}",
    "https://h/x.jpg?token=TheSecret1",
    'hub_token=TheSecret1, HF_TOKEN="TheSecret1", {"api_keys": "TheSecret1"}',
    "--hub_token TheSecret1 failed; Authorization: Bearer TheSecret1; authorization: basic TheSecret1=",
    "cannot read key:TheSecret1@bucket",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_and_tokens_lose_their_secrets(address):
    assert "secret" not in message_text(f"'{address}', \"{address}\"").lower()
    assert "secret" not in str(without_secrets({"output_dir": [address]})).lower()


@pytest.mark.parametrize(
    "text",
    ["https://host/x?email=a@b.org", "hf://datasets/a/b@main/x", "hf_my_dataset_of_the_year_2026", "<a href='x://y'>",
     "data/hf_pedestriandetection2024", "hf_NightPicturesOfTheHarbour2024", "runs/hf_Pedestrians" + "OfTheTown" * 3,
     "hf_Pedestrians" + "OfTheTown" * 3 + "/train", "--hub_token expects a value", "hub_token=None; give token=True",
     "the use_mask_token: is not known", "no bearer was found", "sort_key: 'image/a.jpg' at 12:30, mail a@b.org",
     r"C:\Users\me@corp\data", "mAP:0.5@100 of cat:01@rear.jpg on 10:33@node1", "a basic ResNet50, max_tokens=1000000",
     "{'cls_token': 'Parameter'}, mask_token=Parameter"],
)  # fmt: skip
def test_what_is_no_secret_stays(text):
    assert message_text(text) == text


def test_names_of_secrets_and_of_switches_and_counts():
    kept = {"backbone_config": {"use_mask_token": False, "num_register_tokens": 4}, "passes": 2, "author": "A"}
    secrets = ("hub_token api_key api_keys apiKeys tokens lists_of_key auth bearer pass apitoken secretkey accesskey "
               "cookie private_key_pem").split()  # fmt: skip
    assert without_secrets(kept | dict.fromkeys(secrets, ["x"])) == kept | dict.fromkeys(secrets)
    assert without_secrets({"api_key": 1234}) == {"api_key": None}


def test_files_of_options_and_addresses_of_pictures_say_no_secret(tmp_path, capsys):
    broken = tmp_path / "broken.yaml"
    broken.write_text("learning_rate: 1e-4\nhub_token: 'TheSecret1\n")
    assert main(["fit", "--config", str(broken)]) != 0
    assert main(["fit", "--hub_token", "{a: TheSecret1}", "--lr_scheduler_kwargs", "{a: 1, tokens: 'TheSecret1"]) != 0
    with pytest.raises(FileNotFoundError, match="is an address") as caught:
        find_images(["https://h/x.jpg?token=TheSecret1"])
    assert "Secret" not in str(caught.value)
    said = capsys.readouterr().err
    assert "broken.yaml" in said and "line 3" in said and "Secret" not in said


def test_log_status_errors_and_the_command_say_no_secret_and_no_forged_line(tmp_path, capsys, monkeypatch):
    hostile = f"a\n2030-01-01 00:00:00,000 step 9/9 \x1b[31mred\r{ADDRESSES[0]}"
    handler = log_to_file(tmp_path / "train.log")
    try:
        raise RuntimeError(hostile)
    except RuntimeError as error:
        logging.getLogger("rfdetr_hf.x").warning("class %s", hostile, exc_info=error)
    stop_logging(handler)
    status = RunStatus(tmp_path)
    status.begin(state="failed", message=hostile)
    monkeypatch.setenv("RFDETR_DEBUG", "1")
    assert main(["data", "convert", f"/no/{hostile}", str(tmp_path / "out")]) != 0
    texts = (tmp_path / "train.log").read_text(), status_line(status.read()), capsys.readouterr().err
    for text in texts:
        assert "Secret" not in text and "\x1b" not in text and "\r" not in text and "host/x" in text
        assert not any(line.startswith(("2030", "step")) for line in text.split("\n"))
    assert "Secret" not in (tmp_path / "status.json").read_text()


def test_errors_about_data_say_no_secret():
    with pytest.raises(ValueError, match="host/x") as caught:
        load_detection_dataset(f"/no/{ADDRESSES[0]}")
    assert "Secret" not in str(caught.value)


NUMBERS = [
    ('{"a": 1e-6}', 1e-6), ("{a: 1e-6}", 1e-6), ("a: -1E3", -1e3), ("{a: .5e+2}", 50.0), ("{a: 1.5e2}", 150.0),
    ('{"a": "1e-6"}', "1e-6"), ("{a: '1e-6'}", "1e-6"), ("{a: 1e}", "1e"), ("{a: e5}", "e5"), ('{\n\t"a": 2\n}', 2),
    ('{"a": "\\ud83d\\ude00"}', "\U0001f600"), ("{a: true}", True), ("{a: null}", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), NUMBERS)
def test_mappings_have_the_numbers_of_json(text, value, tmp_path):
    (tmp_path / "file.yaml").write_text(text)
    for given in (text, str(tmp_path / "file.yaml")) if text.startswith("{") else (str(tmp_path / "file.yaml"),):
        found = ModelArguments(config_overrides=given).config_overrides
        assert found == {"a": value} and type(found["a"]) is type(value)


def test_what_is_written_as_yaml_is_read_as_it_was():
    values = {"a": ["1e-6", "1E5", 1e-6, 5e-05, "yes", "1", None, 1], "1e5": {"1": "2", "no": True}}
    assert load_yaml(to_yaml({"values": values}))[0] == values


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', "{1: 1, '1': 2}"])
def test_a_key_that_stands_there_twice_is_named(text):
    with pytest.raises(ValueError, match="stands there twice"):
        load_yaml(text)


@pytest.mark.parametrize("text", ["{1: one, two: 2, 3: yes}", '{"1": "one", "two": 2, "3": "yes"}'])
def test_names_of_classes_are_read_as_written(text, tmp_path):
    expected = {"1": "one", "two": "2", "3": "yes"}
    (tmp_path / "run.yaml").write_text(f"rename_classes: {text}\n")
    for words in (["--rename_classes", text], ["--config", str(tmp_path / "run.yaml")]):
        (args,) = parse_arguments((ModelArguments,), words)
        assert args.rename_classes == expected
