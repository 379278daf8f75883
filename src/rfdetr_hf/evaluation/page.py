"""Pieces of an HTML page that is one file: no script, no network, all texts escaped."""

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

_STYLE = """
:root { color-scheme: light dark; --text: #1d2430; --soft: #5a6474; --back: #fff; --band: #f4f6fa; --line: #dde2ea;
  --strong: #2456a6; --chart: none; }
@media (prefers-color-scheme: dark) { :root { --text: #e3e7ee; --soft: #9aa5b5; --back: #14181f; --band: #1d232d;
  --line: #333c4a; --strong: #8ab4f8; --chart: invert(.92) hue-rotate(180deg); } }
* { box-sizing: border-box; }
body { font: 15px/1.55 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 1180px;
  margin: 0 auto; padding: 1em 16px 4em; overflow-wrap: anywhere; }
h1 { font-size: 1.6em; line-height: 1.25; } h3 { margin: 1.6em 0 .4em; }
h2 { margin-top: 2.2em; border-bottom: 1px solid var(--line); padding-bottom: .2em; }
.lead { font-size: 1.08em; } .note, figcaption { color: var(--soft); } a { color: var(--strong); }
pre { background: var(--band); padding: .8em 1em; border-radius: 6px; white-space: pre-wrap; font-size: 13px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th { background: var(--band); vertical-align: bottom; font-weight: 600; }
td, th { padding: .3em .6em; text-align: right; border-bottom: 1px solid var(--line); }
td:first-child, th:first-child, .texts td, .texts th, td.text { text-align: left; }
td.text { color: var(--soft); border-top: none; }
tr.lined td { border-bottom: none; }
.slim { width: auto; min-width: min(100%, 26em); }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30em), 1fr)); gap: 1em; }
figure { margin: 1.2em 0; } img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
img.chart { filter: var(--chart); width: 100%; } .pan { overflow-x: auto; } .pan img { min-width: 760px; }
.slim td:first-child { overflow-wrap: normal; }
.swatch { display: inline-block; width: .9em; height: .9em; margin: 0 .3em 0 1em; vertical-align: -1px; }
@media (max-width: 480px) { td, th { padding: .3em; } }
@media (max-width: 860px) {
  .wide, .wide tbody, .wide tr, .wide td { display: block; width: 100%; } .wide tr.head { display: none; }
  .wide tr { border: 1px solid var(--line); border-radius: 6px; margin: .6em 0; padding: .3em 0; }
  .wide tr.lined { border-bottom: none; margin-bottom: 0; border-radius: 6px 6px 0 0; }
  .wide tr.lined + tr { border-top: none; margin-top: 0; border-radius: 0 0 6px 6px; }
  .wide td { border: none; display: flex; justify-content: space-between; gap: 1em; padding: .1em .7em; }
  .wide td::before { content: attr(data-name); color: var(--soft); }
  .wide td:first-child { font-weight: 600; } .wide td.text { font-weight: normal; }
  .wide td:first-child::before, .wide td.text::before { content: none; }
}
"""
# Nothing is loaded and nothing runs, whatever a text of the page holds.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
# Control characters but tab and newline, and what turns the direction of the text around it.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def text(value: object) -> str:
    """A text as HTML that shows it, and changes nothing around it."""
    return escape(_UNSEEN.sub("\N{REPLACEMENT CHARACTER}", str(value)))


def page(title: str, body: Sequence[str]) -> str:
    """A complete page with the title as its heading; `body` is HTML."""
    head = "<meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    top = f"<!doctype html>\n<html lang='en'><head>{head}{policy}<title>{text(title)}</title><style>{_STYLE}</style>"
    return "\n".join([f"{top}</head>", f"<body><h1>{text(title)}</h1>", *body, "</body></html>", ""])


def table(cells: Sequence[Sequence[str]], kind: str = "", lines: Sequence[str] = ()) -> str:
    """A table whose first row is its heading.

    Args:
        cells: texts, rows of equal length.
        kind: classes of the style: "wide" becomes a list of cards on a small screen, "slim" takes no more width than
            it needs, "texts" aligns to the left.
        lines: a sentence below each row after the heading.
    """
    head, *rows = cells
    html = ["<tr class='head'>" + "".join(f"<th>{text(cell)}</th>" for cell in head) + "</tr>"]
    for n, row in enumerate(rows):
        named = zip(row, head, strict=True)
        columns = "".join(f"<td data-name='{text(name)}'>{text(cell)}</td>" for cell, name in named)
        html.append(f"<tr{' class=lined' if lines else ''}>{columns}</tr>")
        if lines:
            html.append(f"<tr><td class='text' colspan='{len(head)}'>{text(lines[n])}</td></tr>")
    return f"<table class='{kind}'><tbody>{''.join(html)}</tbody></table>"


def picture(path: Path, caption: str = "", kind: str = "") -> str:
    """A picture as a figure, its bytes in the page.

    Args:
        path: of a PNG or JPEG file.
        caption: a text below it.
        kind: "chart" for colours that follow the screen's, "wide chart" for one that is moved on a small screen.
    """
    return figure(path.read_bytes(), "png" if path.suffix == ".png" else "jpeg", path.stem, caption, kind)


def figure(content: bytes, media: str, name: str, caption: str = "", kind: str = "") -> str:
    """As `picture`, of bytes in memory.

    Args:
        content: of a file.
        media: "png" or "jpeg".
        name: the text in place of the picture, for a reader who does not see it.
        caption, kind: as of `picture`.
    """
    data = base64.b64encode(content).decode()
    style = " class='chart'" if kind else ""
    image = f"<img{style} alt='{text(name)}' src='data:image/{media};base64,{data}'>"
    image = f"<div class='pan'>{image}</div>" if kind.startswith("wide") else image
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return f"<figure>{image}{below}</figure>"
