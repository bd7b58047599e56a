"""The documentation site of a small repository: a good one, and what ends its build."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

for name in ("griffe", "zensical"):
    pytest.importorskip(name, reason="the environment `no-framework` has it")
ROOT = Path(__file__).parents[2]
FILES = {
    "keras_deepseek/__init__.py": '_PUBLIC_MODULES = ("layers", "errors")\n',
    "keras_deepseek/errors.py": '''\
"""Errors."""

__all__ = ["SomeError"]


class SomeError(Exception):
    """Some error."""
''',
    "keras_deepseek/layers/__init__.py": '''\
"""Layers."""

from keras_deepseek.errors import SomeError
from keras_deepseek.layers.scale import Scale
from keras_deepseek.layers.double import double

__all__ = ["LayerNorm", "Scale", "SomeError", "double"]
LayerNorm = keras.layers.LayerNormalization
''',
    "keras_deepseek/layers/scale.py": '''\
class Scale(Layer):
    """Multiplies by a number.

    Args:
        factor: float. Defaults to `1.0`.

    Call arguments:
        inputs: Tensor.

    Returns:
        A tensor: that of the inputs, times the factor.

    Example:

    >>> from keras_deepseek.layers import Scale
    >>> Scale(2.0)(
    ...     1
    ... )
    2

    >>> Scale()(1)
    1

    Reference:

    - [A paper](https://arxiv.org/abs/1)
    """

    def __init__(self, factor=1.0):
        self.factor = factor

    def grow(self, by=1.0):
        """Grows.

        Args:
            by: float.
                Defaults to `1.0`.
        """
''',
    "keras_deepseek/layers/double.py": '''\
def double(x):
    """Doubles a number.

    Returns:
        A value: twice the
            number.

    Example:

    >>> double(1)
    2
    """
''',
    "guides/01_first.py": '''\
"""
Title: The first guide
"""
from keras_deepseek import layers

layers.Scale()
''',
    "guides/build.py": """\
import pathlib, sys

folder = pathlib.Path(sys.argv[1]) / "site/guides"
folder.mkdir(parents=True)
page = folder / "01_first.md"
page.write_text("# The first guide\\n\\n[one](../docs/how_to/one.md#use-it)\\n")
""",
    "docs/index.md": """\
# Home

The [first
guide](../guides/01_first.py), a [test](../tests/house/public_api.txt).

| level | guide |
|---|---|
| beginner | [01 First](../guides/01_first.py) |
""",
    "docs/how_to/one.md": """\
# One

## Use it

[`Scale`][keras_deepseek.layers.Scale], [home](../index.md), [here](#use-it)

```md
[not a link](nowhere.md)
```
""",
    "docs/how_to/two.md": "# Two\n",
    "docs/how_to/three.md": "# Three\n",
    "docs/how_to/index.md": """\
# How to

[Three](three.md) first.

## The last first

- [Two](two.md)
""",
    "docs/numbers.md": "# Numbers\n",
    "tests/house/public_api.txt": (
        "keras_deepseek.layers.Conv2D\nkeras_deepseek.layers.LayerNorm\nkeras_deepseek.layers.NewLayer\n"
        "keras_deepseek.layers.Scale(factor=1.0)\nkeras_deepseek.layers.StackedRNNCells\n"
    ),
}


TOOLS = [
    path for path in (ROOT / "docs").iterdir() if path.suffix in (".py", ".css", ".js", ".txt")
]


@pytest.fixture
def build(tmp_path):
    """Returns a function that builds the site with other texts, and returns the end and the log."""

    def run(**texts):
        for name, text in (FILES | texts).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        shutil.copy(ROOT / "mkdocs.yml", tmp_path)
        for tool in TOOLS:
            shutil.copy(tool, tmp_path / "docs")
        code, log = start("docs/build_site.py", "out")
        if code == 0:
            code, log = start("-m", "zensical", "build", "-c", "-s", "-f", "out/mkdocs.yml")
        return code, re.sub(r"\x1b\[[\d;]*m", "", log)

    def start(*command):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    return run


def test_a_good_site(build, tmp_path):
    code, log = build()
    assert code == 0, log
    assert "No issues found" in log
    assert "warning" not in log.lower()
    out = tmp_path / "out"

    start = (out / "docs/index.md").read_text(encoding="utf-8")
    assert "[first\nguide](guides/01_first.md), a test (`tests/house/public_api.txt`)." in start
    assert "[not a link](nowhere.md)" in (out / "docs/how_to/one.md").read_text(encoding="utf-8")
    assert "(../how_to/one.md#use-it)" in (out / "docs/guides/01_first.md").read_text("utf-8")

    navigation = json.loads((out / "mkdocs.yml").read_text("utf-8").rpartition("nav: ")[2])
    sections = {title: pages for entry in navigation for title, pages in entry.items()}
    assert list(sections) == ["Home", "Guides", "How to", "Reference", "Measured"]
    assert sections["Guides"] == [{"Beginner": [{"01 First": "guides/01_first.md"}]}]
    grouped = {"The last first": ["how_to/two.md"]}
    first = ["how_to/index.md", "how_to/three.md"]
    assert sections["How to"] == [*first, grouped, "how_to/one.md"]
    assert sections["Measured"] == ["numbers.md"]

    index = (out / "docs/reference/api/layers/index.md").read_text(encoding="utf-8")
    assert "| [`Scale`][keras_deepseek.layers.Scale] | Multiplies by a number. |" in index
    assert "[`SomeError`][keras_deepseek.errors.SomeError]" in index
    assert "[`Conv2D`](https://keras.io/api/layers/convolution_layers/convolution2d/)" in index
    assert "recurrent_layers/stacked_rnn_cell/)" in index
    assert "| [others](https://keras.io/api/layers/) | `NewLayer` |" in index

    scale = (out / "site/reference/api/layers/Scale.html").read_text(encoding="utf-8")
    heads = re.findall(r'<span class="doc-section-title">([^<]+)</span>', scale)
    assert heads[:5] == ["Example:", "Arguments:", "Call arguments:", "Returns:", "Reference:"]
    assert "A tensor: that of the inputs, times the factor." in scale
    assert scale.count('<span class="gp">') == 5
    assert ">The first guide</a>" in scale
    assert "keras_deepseek/layers/scale.py" in scale
    # A function that is named after its module.
    double = (out / "site/reference/api/layers/double.html").read_text(encoding="utf-8")
    assert "<p>A value: twice the\nnumber.</p>" in double
    assert double.count('<span class="gp">') == 1
    for page in (out / "site").rglob("*.html"):
        asks = r'<(?:script|link|img)[^>]*(?:src|href)="https?:'
        assert not re.search(asks, page.read_text(encoding="utf-8")), page


def test_a_dead_link_ends_the_build(build):
    page = "# One\n\n[a\nb](../nowhere.md), ![c](c.svg),\n[`d`](../../nowhere.py#L1)\n"
    code, log = build(**{"docs/how_to/one.md": page})
    assert code == 1
    assert log.splitlines() == [
        "docs/how_to/one.md:4: ../nowhere.md does not exist.",
        "docs/how_to/one.md:4: c.svg does not exist.",
        "docs/how_to/one.md:5: ../../nowhere.py#L1 does not exist.",
    ]


def test_a_dead_link_of_a_guide_is_at_its_line_of_python(build):
    script = FILES["guides/build.py"].replace("one.md#use-it", "nowhere.md")
    guide = '"""\nTitle: The first guide\n"""\n"""\n[one](../docs/how_to/nowhere.md)\n"""\n'
    code, log = build(**{"guides/build.py": script, "guides/01_first.py": guide})
    assert code == 1
    assert log.splitlines() == ["guides/01_first.py:5: ../docs/how_to/nowhere.md does not exist."]


def test_a_dead_anchor_and_an_unknown_name_end_the_build(build):
    page = "# One\n\n## Use it\n\n[two](two.md#nothing)\n[`No`][keras_deepseek.layers.No]\n"
    code, log = build(**{"docs/how_to/one.md": page})
    assert code == 1
    warnings = r"Warning: (.+)\n +╭─\[ (.+) \]"
    assert re.findall(warnings, log) == [
        ("anchor does not exist", "how_to/one.md:5:14"),
        ("unresolved autoref", "how_to/one.md:6:8"),
    ]


def test_what_a_docstring_lacks_ends_the_build(build):
    scale = FILES["keras_deepseek/layers/scale.py"]
    scale = scale.replace(">>> ", "").replace("    Defaults to `1.0`", "    It is 1")
    double = "def double(x):\n    return 2 * x\n"
    code, log = build(
        **{"keras_deepseek/layers/scale.py": scale, "keras_deepseek/layers/double.py": double}
    )
    lacks = "has a default that its docstring does not name."
    assert code == 1
    assert log.splitlines() == [
        "keras_deepseek/layers/double.py:1: double has no docstring.",
        "keras_deepseek/layers/scale.py:1: Scale has no `Example:` that runs.",
        f"keras_deepseek/layers/scale.py:36: `by` of grow {lacks}",
    ]


def test_a_link_and_a_default_of_a_docstring_are_at_their_lines(build):
    scale = FILES["keras_deepseek/layers/scale.py"]
    scale = scale.replace(". Defaults to `1.0`.\n\n    C", ".\n\n    C").replace(
        "A tensor", "[A](b.md)"
    )
    code, log = build(**{"keras_deepseek/layers/scale.py": scale})
    lacks = "has a default that its docstring does not name."
    assert code == 1
    assert log.splitlines() == [
        "keras_deepseek/layers/scale.py:11: b.md is no address.",
        f"keras_deepseek/layers/scale.py:5: `factor` of Scale {lacks}",
    ]


def test_the_folder_of_the_site_is_not_written_over(build, tmp_path):
    (tmp_path / "out").write_text("a file")
    assert build() == (1, f"{tmp_path}/out is not empty. Name an empty folder, or a new one.\n")
