"""The script for a GPU, without one: it ends well, its checks run, and they can fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SECONDS = 300
QUICK = ["--device", "cpu", "--backend", "torch", "--check", "device_map"]

pytest.importorskip("torch")


def run_script(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "gpu_tests" / "run.py", *arguments],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_without_a_gpu_it_says_so_and_ends_well():
    done = run_script("--backend", "torch")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "torch: no GPU: it sees cpu only" in done.stdout
    assert "no GPU: nothing was checked." in done.stdout
    assert "passed" not in done.stdout


def test_a_dry_run_passes_and_is_no_report_on_a_gpu():
    done = run_script(*QUICK)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "### Dry run on a CPU: nothing here was run on a GPU" in done.stdout
    assert "| torch | device_map | passed |" in done.stdout


def test_a_planted_fault_fails_the_check_and_the_script():
    done = run_script(*QUICK, "--fault")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "| torch | device_map | FAILED |" in done.stdout


def test_a_check_that_hangs_is_ended_and_has_failed():
    done = run_script(*QUICK, "--minutes", "0.001")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "it takes too long" in done.stdout
