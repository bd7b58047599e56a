"""The index of each folder of docs/, from which the site takes its order, names every page once."""

import re

import pytest


@pytest.mark.parametrize("folder", ["explanation", "how_to", "measured", "reference"])
def test_every_page_is_named_once(root, folder):
    pages = root / "docs" / folder
    named = re.findall(r"\]\((\w+\.md)\)", (pages / "index.md").read_text(encoding="utf-8"))
    assert sorted(named) == sorted({path.name for path in pages.glob("*.md")} - {"index.md"})
