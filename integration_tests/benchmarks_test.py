"""Runs each benchmark at its small sizes: what it measures may have changed its names."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = [
    path
    for path in sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))
    if "make_parser(__doc__" in (text := path.read_text(encoding="utf-8"))
    and "has_quick=False" not in text
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
@pytest.mark.timeout(1800)
def test_a_benchmark_runs_at_small_sizes(script, tmp_path):
    result = tmp_path / "result.json"
    has_rounds = "rounds=None" not in script.read_text(encoding="utf-8")
    once = ["--rounds", "1"] if has_rounds else []
    done = subprocess.run(
        [sys.executable, script, "--quick", *once, "--json", result],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "failed with" not in done.stdout  # A rival's process.
    assert result.exists()
