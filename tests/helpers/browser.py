"""Pages as Chromium shows them."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# What is wider than the room that it has, but what is there to be moved to the side.
_TOO_WIDE = """() => [...document.querySelectorAll("body *")]
    .filter(e => !e.closest(".pan") && (e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0
        || e.getBoundingClientRect().right > innerWidth + 1))
    .map(e => `${e.tagName} ${e.className} ${(e.textContent || "").slice(0, 40)}`)"""


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of playwright; the test skips where that or Chromium is not installed."""
    api = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("Chromium is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


def look_at(browser: Any, path: Path, width: int, scheme: str, screenshot: Path | None = None) -> dict[str, Any]:
    """Open a file in a window of so many pixels.

    Args:
        browser: of `chromium`.
        path: the file.
        width: of the window.
        scheme: "light" or "dark", as the person in front of it prefers.
        screenshot: where a picture of the complete page goes.

    Returns:
        `too_wide`: elements with more width than room; `width` of the document; `requests` besides the file itself;
        `said`: what dialogs and the console said; `background` and `text`: colours of the page; `broken`: images
        that the browser could not decode.
    """
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(120_000)  # milliseconds, for machines that do much else
    said, requests = [], []
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    for details in page.locator("summary").all():
        details.click()
    style = "getComputedStyle(document.body)"
    seen = {
        "too_wide": page.evaluate(_TOO_WIDE),
        "width": page.evaluate("document.documentElement.scrollWidth"),
        "background": page.evaluate(f"{style}.backgroundColor"),
        "text": page.evaluate(f"{style}.color"),
        "broken": page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"),
        "requests": [url for url in requests if not url.startswith("data:") and url != path.as_uri()],
        "said": said,
    }
    if screenshot is not None:
        page.screenshot(path=str(screenshot), full_page=True)
    page.close()
    return seen
