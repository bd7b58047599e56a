"""The links on each page lead to files, headings, public names and tests that exist."""

import re
from functools import cache
from pathlib import Path

import pytest

from tests.oracles.pages import NAMES, ROOT

NAMES = [*NAMES, "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
FENCED = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)


@cache
def read(page: Path) -> str:
    """Reads a page without its blocks of code."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def list_anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", read(page), re.MULTILINE)
    words = (re.sub(r"[^\w\s-]", "", heading).lower() for heading in headings)
    explicit_anchors = re.findall(r'<a id="([^"]+)"></a>', read(page))
    return {re.sub(r"\s", "-", heading_words) for heading_words in words}.union(explicit_anchors)


@pytest.mark.parametrize("name", NAMES)
def test_files_and_headings_exist(name):
    page, dead = ROOT / name, []
    for link in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if re.match(r"[a-z]+:", link):
            continue
        if not target.exists() or (anchor and anchor not in list_anchors(target)):
            dead.append(link)
    assert dead == []


@pytest.mark.parametrize("name", NAMES)
def test_names_of_the_reference_are_public(name):
    public = (ROOT / "tests/house/public_api.txt").read_text(encoding="utf-8")
    names = set(re.findall(r"^[\w.]+", public, re.MULTILINE))
    linked = re.findall(r"\]\[(keras_deepseek[\w.]*)\]", read(ROOT / name))
    assert [linked_name for linked_name in linked if linked_name not in names] == []


@pytest.mark.parametrize("name", NAMES)
def test_named_tests_exist(name):
    missing = [
        f"{path}::{test}"
        for path, test in re.findall(r"([\w/]+_test\.py)::(\w+)", read(ROOT / name))
        if not (ROOT / path).is_file() or f"def {test}(" not in (ROOT / path).read_text("utf-8")
    ]
    assert missing == []
