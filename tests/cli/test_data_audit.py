"""`rfdetr-hf data audit`."""

import json

from helpers.findings import edit

from rfdetr_hf.cli.main import main
from rfdetr_hf.data import scan


def test_the_command(sound_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scan.datasets_config, "HF_CACHE_HOME", str(tmp_path / "home"))
    page, values = tmp_path / "audit.html", tmp_path / "audit.json"
    words = ["data", "audit", str(sound_folder), "--html", str(page), "--json", str(values)]
    assert main([*words, "--strict"]) == 0
    assert main(words) == 1 and "audit.html exists" in capsys.readouterr().err
    (sound_folder / "train/<b>.jpg").write_bytes((sound_folder / "train/train0.jpg").read_bytes())
    edit(sound_folder, "train", lambda content: content["images"][5].update(file_name="<b>.jpg"))
    edit(sound_folder, "train", lambda content: content["categories"][0].update(name="<script>"))
    edit(sound_folder, "valid", lambda content: content["categories"][0].update(name="<script>"))
    assert main([*words, "--overwrite"]) == 0, "without --strict findings are no failure"
    assert main([*words, "--overwrite", "--strict"]) == 1
    out = capsys.readouterr().out
    assert "duplicate" not in out and "the same bytes as another one" in out
    assert max(map(len, out.splitlines())) < 80
    html = page.read_text()
    assert "<script>" not in html and "<b>.jpg" not in html and "&lt;script&gt;" in html and "data:image/jpeg" in html
    found = json.loads(values.read_text())["findings"]
    assert {each["kind"] for each in found} >= {"duplicate pictures", "unreferenced files"}
