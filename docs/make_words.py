"""Write the tables of the migration pages from the words that the command understands: python docs/make_words.py

A table stands between `<!-- words: FILE, SECTION -->` and `<!-- end -->`; see `rfdetr_hf.arguments.words`.
"""

import re
import sys
from pathlib import Path

from rfdetr_hf.arguments.words import Word, words_of

PAGES = Path(__file__).parent / "migration"
_TABLE = re.compile(r"(<!-- words: (\w+), ([^>]+) -->\n).*?(<!-- end -->)", re.S)


def row_of(word: Word) -> str:
    """One row: the word, what it is here, the remark; an alias is understood directly."""
    here = ", ".join(f"`{target}`" for target in word.targets) or "–"
    return f"| `{word.name}` | {here} |{f' {word.remark}' if word.remark else ''} |"


def table_of(file: str, section: str) -> str:
    """The rows of a section with their head."""
    rows = [row_of(word) for word in words_of(file) if word.section == section]
    if not rows:
        raise ValueError(f"words/{file}.txt has no section {section!r}")
    return "\n".join([f"\n| {words_of(file)[0].package if file != 'verbs' else section} | here | remark |",
                      "|---|---|---|", *rows]) + "\n\n"  # fmt: skip


def page_with_tables(text: str) -> str:
    """A page with its tables as the words are now."""
    return _TABLE.sub(lambda match: f"{match[1]}{table_of(match[2], match[3])}{match[4]}", text)


def main() -> int:
    """Write the pages that have tables."""
    for page in sorted(PAGES.glob("*.md")):
        page.write_text(page_with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
