"""What a cluster computes is tried in `training/parameter_server/coordinator_engine_test.py`."""

import json
import os
import subprocess
import sys

import keras
import pytest

from keras_deepseek.backend import current
from keras_deepseek.errors import InvalidInputError, NotSupportedError

LONG = """Graph execution error:

Detected at node a defined at
  File x

2 root error(s) found.
  (0) INVALID_ARGUMENT:  Label 9 is none.
\t [[{{node a}}]]
"""
TIMEOUT = 300
IS_TENSORFLOW = keras.backend.backend() == "tensorflow"


@pytest.mark.skipif(IS_TENSORFLOW, reason="It has them.")
def test_the_others_have_no_tasks():
    with pytest.raises(NotSupportedError, match="Only TensorFlow has tasks"):
        current().distribution.connect_tasks(dict)
    with pytest.raises(NotSupportedError, match="Only TensorFlow has tasks"):
        current().distribution.serve_task({}, "worker", 0, lambda: None)


def test_an_object_that_has_connected_to_nobody_has_no_tasks():
    assert current().distribution.adopt_tasks("parameter_server") is None
    assert current().distribution.adopt_tasks(object()) is None


@pytest.mark.nightly
@pytest.mark.skipif(not IS_TENSORFLOW, reason="The others have none.")
def test_a_strategy_of_the_script_may_have_connected():
    done = subprocess.run(
        [sys.executable, "tests/oracles/own_servers.py"],
        env={**os.environ, "PYTHONPATH": "."},
        timeout=TIMEOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["losses"][-1] < 0.1 * report["losses"][0]
    assert "received num_workers=3, num_servers=1" in report["refused"]


@pytest.mark.skipif(not IS_TENSORFLOW, reason="The others have none.")
def test_who_has_computed_can_t_connect_and_asks_for_no_address():
    keras.Variable(0.0)

    def find():
        raise AssertionError("There is no need for addresses.")

    with pytest.raises(InvalidInputError, match="before it computes anything"):
        current().distribution.connect_tasks(find)


@pytest.mark.skipif(not IS_TENSORFLOW, reason="The others have none.")
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            LONG,
            "Label 9 is none.",
        ),
        ("Socket closed\nAdditional GRPC error information\n:UNKNOWN:Error", "Socket closed"),
    ],
)
def test_the_cause_of_an_error_is_found(message, expected):
    from keras_deepseek.backend.tensorflow.task_cluster import _cause

    assert _cause(RuntimeError(message)) == expected
