"""Runs each guide as a script on each backend: `pytest guides`, with all three installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from guides import build

GUIDES = sorted(Path(__file__).parent.glob("[0-9]*.py"))
FAILING = """\
\"\"\"
Title: A guide
Author: The keras_deepseek authors
Date created: 2026/11/30
Last modified: 2026/11/30
Description: It fails.
Time: 2 seconds on two cores
Install: keras_deepseek
\"\"\"

import os

root = os.sep

\"\"\"
## A cell that fails
\"\"\"

rows = []
rows[1]
plt.savefig("line.png")
assert rows
"""


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_a_guide_runs(guide, backend, tmp_path):
    ended = subprocess.run(
        [sys.executable, guide],
        cwd=tmp_path,
        # What a guide writes stays for its reader to look at.
        env={**os.environ, "KERAS_BACKEND": backend, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    assert list(tmp_path.glob("*.png"))


def test_a_cell_that_fails_ends_the_build(tmp_path, monkeypatch):
    pytest.importorskip("nbclient", reason="tox -e guides has it")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "02_bad.py").write_text(FAILING, encoding="utf-8")
    with pytest.raises(SystemExit, match=r"^02_bad.py:20: IndexError: list index out of range$"):
        build.main(["out", "02_bad.py", "--run"])
    assert not (tmp_path / "out").exists()
