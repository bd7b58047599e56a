"""docs/how_to/index.md, from which the site makes its navigation, names every how-to page once."""

import re


def test_every_page_is_named_once(root):
    folder = root / "docs/how_to"
    named = re.findall(r"\]\((\w+\.md)\)", (folder / "index.md").read_text(encoding="utf-8"))
    assert sorted(named) == sorted({path.name for path in folder.glob("*.md")} - {"index.md"})
