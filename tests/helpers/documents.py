"""The documents of the repository and their fenced blocks."""

import re
import shlex
from typing import NamedTuple

from .scripts import ROOT

_FENCE = re.compile(r"(?:<!-- needs: (?P<needs>[\w, ]+) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.S | re.M)


class Block(NamedTuple):
    """A block, its line, and the packages that the comment `<!-- needs: a, b -->` before it names."""

    language: str
    text: str
    line: int
    needs: tuple[str, ...]


def documents() -> list[str]:
    """README and the pages of docs/ whose blocks are checked, as paths from the root. The API page is generated."""
    pages = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    return ["README.md", "CONTRIBUTING.md", *(page for page in pages if page != "docs/reference/api.md")]


def blocks(document: str, *languages: str) -> list[Block]:
    """The blocks of a document in some languages."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        if match["language"] in languages:
            needs = tuple(name.strip() for name in (match["needs"] or "").split(",") if name.strip())
            found.append(Block(match["language"], match["text"], text.count("\n", 0, match.start("text")), needs))
    return found


def commands(block: Block) -> list[list[str]]:
    """The commands of a bash block as lists of words; `&&` separates commands, a backslash continues a line."""
    lines = block.text.replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        # An ellipsis stands for options that the reader knows from elsewhere.
        words = [word for word in shlex.split(line, comments=True) if word not in ("…", "...")]
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            found.append(words[:end])
            words = words[end + 1 :]
    return [words for words in found if words]
