import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="chief_test.py is for JAX and PyTorch."
)
ROOT = Path(__file__).parents[3]


def run_trainings(folder, ways):
    """Returns what came of trainings by two workers and two servers: see the script."""
    done = subprocess.run(
        [sys.executable, "tests/oracles/coordinated_training.py", folder, ways],
        cwd=ROOT,
        # With so few threads tasks that wait for each other once never went on.
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_NUM_INTEROP_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check_same(found, ways):
    """With a bound of zero they have the very numbers, whatever a step does."""
    for way in ways:
        assert found[way]["logs"] < 1e-4, way
        assert found[way].get("weights", 0) < 1e-3, way
        assert len(set(found[way].get("steps", [1]))) == 1, way


def test_trainings_by_workers_and_servers_are_those_of_one_process(tmp_path):
    """One test, since the tasks take long to begin, and a process connects to them once."""
    found = run_trainings(tmp_path, "first")
    check_same(found, ("plain", "after it"))

    # A worker that dies is taken back, and each update counts once.
    alone, served = found["worker"]["losses"]
    assert served < 1.02 * alone  # It may be better: the weights of a batch are a little older.
    assert found["worker"]["steps"] == 4 * 57
    assert found["worker"]["in_order"]

    # One that SIGTERM has ended goes on as one that was left alone.
    assert found["stopped"]["code"] == 0
    assert 13 <= found["stopped"]["stopped_after"] < 20
    assert found["stopped"]["logs"] < 1e-4

    kind, text = found["bad label"]
    assert kind == "InvalidInputError"
    assert "A worker could not compute a batch: Received a label value of 10" in text
    assert "It came with batch 1 of epoch 1" in text

    kind, text = found["server"]
    assert kind == "PeerLostError"
    assert "erver" in text
    assert "fit(..., resume=True)" in text


@pytest.mark.nightly
def test_whatever_a_step_does_it_is_that_of_one_process(tmp_path):
    found = run_trainings(tmp_path, "further")
    check_same(found, ("parts", "adaptive", "sparse", "distil"))
    assert found["half"]["logs"] < 1e-2  # Half precision, and layers that are computed anew.
    one, other = found["dropout"]["losses"]
    assert one == other
    for alone, served in zip(*found["encoder"]["losses"], strict=True):
        assert served < 1.02 * alone
