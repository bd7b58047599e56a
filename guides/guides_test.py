"""Runs each guide as a reader would, on each backend: `pytest guides`, with all three installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

GUIDES = sorted(Path(__file__).parent.glob("[0-9]*.py"))


def cells():
    """Yields each guide on each backend; TensorFlow and JAX take minutes to compile most."""
    slow = {"tensorflow": pytest.mark.slow_on_tensorflow, "jax": pytest.mark.slow_on_jax}
    for guide in GUIDES:
        for backend in ("tensorflow", "jax", "torch"):
            is_slow = backend in slow and guide.stem != "01_quickstart"
            marks = [slow[backend]] if is_slow else []
            yield pytest.param(guide, backend, id=f"{guide.stem}-{backend}", marks=marks)


@pytest.mark.parametrize(("guide", "backend"), list(cells()))
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
