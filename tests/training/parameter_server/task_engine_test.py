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


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What came of trainings by two workers and two servers: see the script."""
    done = subprocess.run(
        [
            sys.executable,
            "tests/oracles/coordinated_training.py",
            str(tmp_path_factory.mktemp("c")),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("way", ["plain", "parts", "adaptive", "sparse", "distil", "after it"])
def test_a_bound_of_zero_has_the_numbers_of_one_process(found, way):
    assert found[way]["logs"] < 1e-4
    assert found[way].get("weights", 0) < 1e-3
    assert len(set(found[way].get("steps", [1]))) == 1


def test_half_precision_and_computing_anew_have_them_too(found):
    assert found["half"]["logs"] < 1e-2


def test_random_numbers_are_a_batch_s_own(found):
    one, other = found["dropout"]["losses"]
    assert one == other


def test_a_worker_that_dies_is_taken_back_and_each_update_counts_once(found):
    alone, served = found["worker"]["losses"]
    assert served == pytest.approx(alone, rel=0.02)
    assert found["worker"]["steps"] == 4 * 57
    assert found["worker"]["in_order"]


def test_a_model_of_bert_s_shape_learns_as_in_one_process(found):
    alone, served = found["encoder"]["losses"]
    assert served == pytest.approx(alone, rel=0.02)


def test_a_training_that_was_stopped_goes_on_as_one_that_was_not(found):
    assert found["stopped"]["code"] == 0
    assert 13 <= found["stopped"]["stopped_after"] < 20
    assert found["stopped"]["logs"] < 1e-4


def test_an_error_of_a_worker_is_that_of_the_training(found):
    kind, text = found["bad label"]
    assert kind == "InvalidInputError"
    assert "A worker could not compute a batch: Received a label value of 10" in text
    assert "It came with batch 1 of epoch 1" in text


def test_a_server_that_dies_ends_the_training(found):
    kind, text = found["server"]
    assert kind == "PeerLostError"
    assert "erver" in text
    assert "fit(..., resume=True)" in text
