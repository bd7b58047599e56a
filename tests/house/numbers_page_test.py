"""docs/numbers.md is drawn from the results of the benchmarks, and other pages quote it rightly."""

import importlib
import json
import re
import sys

import pytest


@pytest.fixture
def writer(root, monkeypatch):
    """Returns the module `benchmarks/write_page.py`."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    yield importlib.import_module("write_page")
    for name in ("write_page", "result"):
        sys.modules.pop(name, None)


CONTENT = {
    "benchmark": "moe",
    "command": "python benchmarks/moe.py",
    "date": "2026-11-30",
    "machine": {"processor": "P", "cores": 2, "memory_gib": 24, "python": "3.11"},
    "versions": {"keras": "3.15"},
    "tables": {},
    "figures": [
        {"name": "ahead", "ours": 2.0, "unit": "ms", "peer": "other", "theirs": 3.0, "target": 1.2},
        {"name": "missed", "ours": 2.0, "unit": "s", "target": 1.0},
        {"name": "behind", "ours": 4.0, "unit": "ms", "peer": "other", "theirs": 2.0},
    ],
}

OF_A_MACHINE = re.compile(r"/(home|root|tmp|work|Users)/")


def write(folder, **changes):
    (folder / "moe.json").write_text(json.dumps({**CONTENT, **changes}), encoding="utf-8")


def test_the_page_is_that_of_the_results(writer, root):
    for path, text in writer.draw_all(writer.read_results()).items():
        relative_path = path.relative_to(root)
        assert path.read_text(encoding="utf-8") == text, (
            f"{relative_path}: benchmarks/write_page.py"
        )
        assert not OF_A_MACHINE.search(text), relative_path
    for path in (root / "benchmarks" / "results").glob("*.json"):
        assert not OF_A_MACHINE.search(path.read_text(encoding="utf-8")), path.name


def test_what_a_peer_does_better_comes_first(writer, tmp_path):
    write(tmp_path)
    (result,) = writer.read_results(tmp_path)
    assert [figure.name for figure in result.figures] == ["behind", "missed", "ahead"]
    page = writer.write_page([result])
    losses = page[page.index("## Where we are not ahead") : page.index("## Moe")]
    assert losses.index("behind") < losses.index("missed")
    assert "0.50 times other" in losses
    assert "| ahead" not in losses
    assert "≤ 1 s, **missed**" in page
    assert writer.draw(result).count("<rect") == 2


@pytest.mark.parametrize("key", ["benchmark", "command", "date", "machine", "versions"])
def test_a_result_that_lacks_a_key_is_named(writer, tmp_path, key):
    write(tmp_path, **{key: None})
    with pytest.raises(ValueError, match=rf'moe\.json:1: "{key}" is missing'):
        writer.read_results(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"figures": [{"name": "a", "ours": 1.0, "unit": "ms", "speed": 2}]}, "'speed'"),
        ({"figures": [{"name": "a", "ours": None, "unit": "ms"}]}, "NoneType"),
        ({"machine": "a fast one"}, "string indices"),
        ({"benchmark": "nothing"}, "No such file"),
    ],
)
def test_a_result_in_another_form_is_named(writer, tmp_path, change, message):
    write(tmp_path, **change)
    with pytest.raises(ValueError, match=rf"moe\.json:1: this is no result: .*{message}"):
        writer.read_results(tmp_path)


def test_a_peer_may_be_infinitely_behind(writer, tmp_path):
    errors = {"name": "errors", "ours": 0, "unit": "errors", "peer": "other", "theirs": 5}
    write(tmp_path, figures=[errors])
    page = writer.write_page(writer.read_results(tmp_path))
    assert "| 0 errors | 5 errors (other) | ∞ |" in page


def test_a_quoted_figure_is_that_of_the_page(writer, root):
    """A page quotes a figure as a link to it: `[1.32 times](numbers.md#training-...)`."""
    page_numbers = {
        writer.anchor(result, figure): {
            writer.format_number(figure.ours),
            writer.format_number(figure.theirs or 0.0),
            writer.format_advantage(figure.advantage or 0.0),
        }
        for result in writer.read_results()
        for figure in result.figures
    }
    sections = {result.name.replace("_", "-") for result in writer.read_results()}
    for page in [root / "README.md", *(root / "docs").rglob("*.md")]:
        if page == writer.PAGE:
            continue
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"\[([^]]*)\]\([^)]*numbers\.md#([^)]+)\)", text):
            if match[2] in sections:
                continue
            line = text.count("\n", 0, match.start()) + 1
            location = f"{page.relative_to(root)}:{line}"
            assert match[2] in page_numbers, f"{location}: no figure has the anchor {match[2]}"
            numbers = set(re.findall(r"[\d,]*\.?\d+", match[1]))
            assert numbers, f"{location}: the link quotes no number"
            assert numbers <= page_numbers[match[2]], (
                f"{location}: {match[1]} is not {page_numbers[match[2]]}"
            )
