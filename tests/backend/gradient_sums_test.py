import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ORACLE = Path(__file__).parents[1] / "oracles" / "gradient_sums.py"
TIMEOUT = 300
WORLD_SIZE = 2
# JAX compiles each sum by itself; on TensorFlow `processes_test` does the same in trainings.


def sum_gradients(folder):
    """Leaves what each rank found in a folder."""
    launch = ["-m", "keras_deepseek.cli", "launch", "--nproc", str(WORLD_SIZE)]
    done = subprocess.run(
        [sys.executable, *launch, str(ORACLE), str(folder)],
        env=dict(os.environ),
        timeout=TIMEOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def summed(make_once):
    """Returns what each rank found."""
    folder = make_once("gradient_sums", sum_gradients)
    return [np.load(folder / f"{rank}.npz") for rank in range(WORLD_SIZE)]


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "low rank"])
def test_what_compression_takes_from_gradients_is_sent_later(summed, kind):
    exact = sum(rank[f"{kind}/given"] for rank in summed) / WORLD_SIZE
    residual = sum(rank[f"{kind}/residual"].astype("float64") for rank in summed)
    for rank in summed:
        total = rank[f"{kind}/summed"]
        np.testing.assert_array_equal(total, summed[0][f"{kind}/summed"])
        np.testing.assert_allclose(total + residual, exact, rtol=1e-6, atol=1e-12)
        assert rank[f"{kind}/is left alone"]  # By steps that were left out.
    assert np.any(residual)
    # What is left out at each step would add up.
    assert np.max(np.abs(total - exact)) < 2**-7


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "low rank"])
def test_compressed_gradients_may_be_large_and_what_is_not_finite_is_seen_by_all(summed, kind):
    for rank in summed:
        np.testing.assert_allclose(rank[f"{kind}/largest"], 0.75e38, rtol=2**-7)
        assert not np.all(rank[f"{kind}/bad"])
