"""The page's own files: small, without a build step, and with known vendored scripts."""

import hashlib
import re

import pytest


@pytest.fixture
def static(root):
    """Returns the folder of the page."""
    return root / "keras_deepseek/studio/static"


def test_vendored_scripts_are_those_that_the_table_names(static):
    table = (static / "vendor/README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w.]+)` .*`([0-9a-f]{64})` \|$", table, re.MULTILINE))
    scripts = {path.name: path for path in (static / "vendor").glob("*.*s")}
    assert rows.keys() == scripts.keys()
    for name, path in scripts.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == rows[name], name


def test_the_page_stays_small_and_names_no_other_host(static):
    own = [path for path in static.glob("*.*") if path.suffix in (".js", ".css", ".html")]
    text = {path.name: path.read_text(encoding="utf-8") for path in own}
    assert (
        sum(len(each.splitlines()) for name, each in text.items() if name.endswith(".js")) <= 1200
    )
    for name, each in text.items():
        assert not re.search(r"https?://(?!www\.w3\.org)", each), name
        assert "innerHTML" not in each, name
