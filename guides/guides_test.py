"""Runs each guide as a reader would, on each backend: `pytest guides`, with all three installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

GUIDES = sorted(Path(__file__).parent.glob("[0-9]*.py"))


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
