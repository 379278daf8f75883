"""The demo: what is shown follows what is chosen; clicked through in Chromium."""

import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import rfdetr_hf
from rfdetr_hf import RFDETRImageProcessor, build_demo

pytest.importorskip("gradio")
TASKS = {
    "detection": ("RFDETRForObjectDetection", {}, ["boxes"]),
    "segmentation": ("RFDETRForInstanceSegmentation", {}, ["boxes", "masks"]),
    "keypoints": ("RFDETRForKeypointDetection", {"num_keypoints_per_class": [4, 0, 4]}, ["boxes", "keypoints"]),
}


def model_folder(folder, config, task="detection"):
    """A model that finds something everywhere."""
    name, overrides, _ = TASKS[task]
    torch.manual_seed(0)
    model = getattr(rfdetr_hf, name)(config(**overrides))
    torch.nn.init.constant_(model.class_embed.bias, -0.2)
    model.save_pretrained(folder)
    RFDETRImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return str(folder)


def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))


@pytest.mark.parametrize("task", TASKS)
def test_what_is_shown_follows_slider_hidden_classes_and_parts(tmp_path, tiny_config, task):
    demo = build_demo(model_folder(tmp_path / "model", tiny_config, task))
    by_name = {block.fn.__name__: block.fn for block in demo.fns.values()}
    look, show = by_name["look"], by_name["show"]
    parts = next(b for b in demo.blocks.values() if getattr(b, "elem_id", None) == "parts")
    assert [value for _, value in parts.choices] == TASKS[task][2]
    seen = look(picture().convert("RGBA"))
    assert look(None) is None and show(None, 0.5, [], ["boxes"]) == (None, "", [])
    everything = show(seen, 0.05, [], TASKS[task][2])
    assert re.fullmatch(r"\d+ ms on cpu, 90 × 70 pixels, \d+ objects", everything[1]) and everything[2]
    scores = [row[1] for row in everything[2]]
    middle = float(np.median(scores))
    assert 0 < len(show(seen, middle, [], ["boxes"])[2]) < len(scores)
    name = everything[2][0][0]
    left = show(seen, 0.05, [name], ["boxes"])[2]
    assert left == [row for row in everything[2] if row[0] != name]
    blank = show(seen, 0.05, [], [])[0].tobytes()
    drawings = [show(seen, 0.05, [], [part])[0].tobytes() for part in TASKS[task][2]]
    assert len({blank, *drawings}) == 1 + len(drawings), "each part is drawn by itself"


@pytest.mark.slow
def test_a_visitor_uploads_moves_the_slider_hides_a_class_and_turns_the_webcam_on(tmp_path, tiny_config):
    browsers = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    picture().save(tmp_path / "picture.png")
    demo = build_demo(model_folder(tmp_path / "model", tiny_config), title="Shapes")
    _, address, _ = demo.launch(prevent_thread_lock=True, quiet=True)
    flags = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    try:
        with browsers.sync_playwright() as play, play.chromium.launch(executable_path=chromium, args=flags) as browser:
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            faults = []
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.set_default_timeout(60_000)
            page.goto(address, wait_until="domcontentloaded")
            page.wait_for_function("document.title == 'Shapes'")

            def count(selector="#latency"):
                return int(re.search(r"ms on .* pixels, (\d+) objects", page.inner_text(selector))[1])

            def wait_for(other, selector="#latency"):
                page.wait_for_function(
                    "([selector, text]) => document.querySelector(selector).innerText.includes('objects') &&"
                    " !document.querySelector(selector).innerText.includes(text)",
                    arg=[selector, other],
                )

            page.locator("#given input[type=file]").set_input_files(tmp_path / "picture.png")
            wait_for("nothing yet")
            page.wait_for_selector("#picture img")
            at_half = count()
            page.fill("#least input[type=number]", "0.6")
            page.keyboard.press("Tab")
            wait_for(f", {at_half} objects")
            above = count()
            assert 0 < above < at_half
            assert "triangle" in page.inner_text("#objects")
            page.click("#hidden input")
            page.get_by_role("option", name="triangle").click()
            wait_for(f", {above} objects")
            page.wait_for_function("() => !document.querySelector('#objects').innerText.includes('triangle')")
            assert 0 < count() < above
            page.screenshot(path=tmp_path / "picture-tab.png", full_page=True)
            page.get_by_role("tab", name="Webcam").click()
            page.get_by_text("Click to Access Webcam").click()
            page.get_by_label("capture photo").click()
            wait_for("nothing yet", "#beat")
            page.wait_for_function("() => document.querySelector('#live img') !== null")
            page.screenshot(path=tmp_path / "webcam-tab.png", full_page=True)
            assert count("#beat") >= 0 and faults == []
    finally:
        demo.close()
