"""Trainings by several processes, started as users do, against the same training by one."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

ORACLE = Path(__file__).parents[1] / "oracles" / "all_reduce.py"
TIMEOUT = 300
WORLD_SIZE = 2

pytestmark = pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="TensorFlow follows."
)


def run(command, **environment):
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **environment},
        timeout=TIMEOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns what one process found, and each of several."""
    folder = tmp_path_factory.mktemp("all_reduce")
    run([str(ORACLE), str(folder)])
    launch = ["-m", "keras_deepseek.cli", "launch", "--nproc", str(WORLD_SIZE)]
    run([*launch, str(ORACLE), str(folder)])
    return [np.load(folder / f"{name}.npz") for name in ("alone", *range(WORLD_SIZE))]


def test_several_processes_find_what_one_does(trained):
    alone, *ranks = trained
    for name in alone.files:
        # Each rank rounds its part of a gradient to float16 before the sum.
        atol = 1e-3 if "half" in name else 1e-5
        for rank in ranks:
            np.testing.assert_allclose(rank[name], alone[name], rtol=0, atol=atol, err_msg=name)


def test_all_ranks_have_the_same_weights_to_the_last_bit(trained):
    _, first, second = trained
    for name in first.files:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
