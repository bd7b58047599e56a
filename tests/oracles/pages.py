"""The pages of the documentation, and the blocks of code on them."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]

_BLOCK = re.compile(r"^( *)```(?P<language>\w*)\n(?P<text>.*?)^\1```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: \S.* -->")


class Block(NamedTuple):
    """A block of code, the line that its text begins at, and True if it has to run."""

    language: str
    text: str
    line: int
    runs: bool


def read_blocks(page: Path) -> list[Block]:
    """Reads the blocks of a page from top to bottom.

    A block below the comment `<!-- not run: REASON -->` does not run.
    """
    content = page.read_text(encoding="utf-8")
    blocks = []
    for match in _BLOCK.finditer(content):
        line_above = content[: match.start()].rstrip().rpartition("\n")[2].strip()
        indent = len(match[1])
        text = "".join(line[indent:] or "\n" for line in match["text"].splitlines(keepends=True))
        line = content[: match.start("text")].count("\n")
        blocks.append(Block(match["language"], text, line, not _NOT_RUN.fullmatch(line_above)))
    return blocks
