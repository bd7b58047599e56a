"""Trainings by several processes, started as users do, against the same training by one."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_deepseek.backend import current
from keras_deepseek.backend.processes.processes import lost_peer_error
from keras_deepseek.errors import PeerLostError

ORACLE = Path(__file__).parents[2] / "oracles" / "all_reduce.py"
TIMEOUT = 300
WORLD_SIZE = 2


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
    return done.stdout


@pytest.fixture(scope="module")
def trained(request, make_once):
    """Returns what one process found, and each of several, in the first or the further ways."""
    ways = getattr(request, "param", "first")

    def train(folder):
        run([str(ORACLE), str(folder), ways])
        launch = ["-m", "keras_deepseek.cli", "launch", "--nproc", str(WORLD_SIZE)]
        run([*launch, str(ORACLE), str(folder), ways])

    folder = make_once(f"all_reduce_{ways}", train)
    return [np.load(folder / f"{name}.npz") for name in ("alone", *range(WORLD_SIZE))]


in_each_way = pytest.mark.parametrize(
    "trained",
    [
        pytest.param("first", marks=pytest.mark.torch_alone),
        pytest.param("further", marks=pytest.mark.nightly),
    ],
    indirect=True,
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_a_process_that_is_alone_is_the_first_and_has_all_of_each_variable(dtype):
    assert current().distribution.process_rank() == 0
    variable = keras.Variable(np.arange(6).reshape(2, 3), dtype=dtype, trainable=False)
    whole = current().distribution.read_whole(variable.value)
    assert isinstance(whole, np.ndarray)
    assert whole.dtype.name == dtype
    assert whole.astype("float32").tolist() == [[0, 1, 2], [3, 4, 5]]


@in_each_way
def test_several_processes_find_what_one_does(trained):
    alone, *ranks = trained
    for name in alone.files:
        if "low rank" in name:
            continue
        # Each rank rounds its part of a gradient to float16 before the sum.
        atol = 1e-3 if "half" in name or "reduced in" in name else 1e-5
        for rank in ranks:
            np.testing.assert_allclose(rank[name], alone[name], rtol=0, atol=atol, err_msg=name)


@in_each_way
def test_all_ranks_have_the_same_weights_to_the_last_bit(trained):
    alone, first, second = trained
    for name in alone.files:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.mark.torch_alone
def test_each_rank_has_half_of_a_sharded_state(trained):
    num_weights = 6 * 16 + 16 + 16 * 3 + 3
    for rank in trained[1:]:  # AdamW's two slots and the moving average, and some counters.
        assert rank["sharded state"] < 0.55 * 3 * num_weights


@pytest.mark.torch_alone
def test_ranks_hear_of_each_other(trained):
    for rank in trained[1:]:
        assert rank["heard"] == "from rank 0"
        assert not np.any(rank["variables"])
        np.testing.assert_array_equal(rank["gathered"], [[0, 0], [1, 1], [1, 1]])
        assert rank["gathered"].dtype == "float16"
        expected = [[0, 0], [0, 1], [0, 0], [1, 0], [0, 0]]
        np.testing.assert_array_equal(rank["wishes"], expected)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="Others are compiled.")
def test_recorded_steps_of_several_processes_are_those_of_keras_to_the_bit(trained):
    for rank in trained[1:]:
        np.testing.assert_array_equal(rank["free weights"], rank["hooked weights"])
        assert rank["hooked calls"] == 20
        # The second batch of one row, and its recording.
        assert rank["free calls"] == 2


@in_each_way
def test_trainings_of_several_processes_are_resumed_to_the_bit(trained):
    for rank in trained[1:]:
        names = [name for name in rank.files if name.startswith("resumed")]
        assert len(names) == 2
        for name in names:
            np.testing.assert_array_equal(*rank[name], err_msg=name)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX ends a process left alone.")
@pytest.mark.torch_alone
@pytest.mark.parametrize("when", ["in step", "between"])
def test_who_is_left_alone_is_told(trained, when):
    (message,) = trained[1][f"lost {when}"]
    assert "another one has ended, or does not answer" in message


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Only TensorFlow is asked.")
def test_a_rank_listens_where_tf_config_says(monkeypatch):
    from keras_deepseek.backend.tensorflow import distribution

    assert 0 < distribution._own_port() < 65536
    cluster = '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}'
    monkeypatch.setenv("TF_CONFIG", cluster)
    assert distribution._own_port() == 2
    monkeypatch.setenv("TF_CONFIG", "{}")
    assert distribution._own_port() > 2


@pytest.mark.nightly
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Only TensorFlow has them.")
def test_a_strategy_of_the_script_may_have_joined_the_processes(tmp_path):
    oracle = str(ORACLE.with_name("own_strategy.py"))
    run([oracle, str(tmp_path)])
    run(["-m", "keras_deepseek.cli", "launch", "--nproc", "2", oracle, str(tmp_path)])
    alone, *ranks = (np.load(tmp_path / f"{name}.npz") for name in ("1-0", "2-0", "2-1"))
    for rank in ranks:
        np.testing.assert_allclose(rank["weights"], alone["weights"], rtol=0, atol=1e-5)
        np.testing.assert_array_equal(rank["weights"], ranks[0]["weights"])
        assert "Received world_size=7, but the strategy object runs with 2" in str(rank["refused"])


IS_LAST_AT_EXIT = """
import atexit
import torch.distributed
atexit.register(lambda: print(torch.distributed.is_initialized()))
from keras_deepseek.training import join_cluster
join_cluster()
"""


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="Only PyTorch has groups to leave.")
@pytest.mark.nightly
def test_processes_leave_their_group_before_the_interpreter_ends(tmp_path):
    (tmp_path / "script.py").write_text(IS_LAST_AT_EXIT, encoding="utf-8")
    launch = ["-m", "keras_deepseek.cli", "launch", "--nproc", "2", str(tmp_path / "script.py")]
    assert sorted(run(launch).splitlines()) == ["[0] False", "[1] False"]


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="The others have errors of their own.")
def test_jax_s_errors_about_a_peer_are_told_from_others(monkeypatch):
    from keras_deepseek.backend.jax import distribution
    from keras_deepseek.backend.jax.distribution import translate_peer_errors

    with pytest.raises(ValueError, match="Gloo"), translate_peer_errors("make a step"):
        raise ValueError("Gloo is what a process that trains alone has nothing to do with.")
    monkeypatch.setattr(distribution.jax, "process_count", lambda: 2)
    for text in (
        "UNKNOWN: Gloo AllGather failed: Connection reset",
        "DEADLINE_EXCEEDED: timed out",
    ):
        with (
            pytest.raises(PeerLostError, match="another one has ended"),
            translate_peer_errors("make a step"),
        ):
            raise ValueError(text)
    with (
        pytest.raises(ValueError, match="RESOURCE_EXHAUSTED"),
        translate_peer_errors("make a step"),
    ):
        raise ValueError("RESOURCE_EXHAUSTED: Out of memory")


def test_an_object_that_runs_no_processes_says_nothing_of_them():
    assert current().distribution.read_strategy("allreduce") is None
    assert current().distribution.read_strategy(object()) is None


def test_the_error_of_a_lost_peer_names_the_cause():
    error = RuntimeError("Graph execution error:\n\nCollective ops is aborted by: Socket closed\n")
    assert str(lost_peer_error("make a step", "TensorFlow", error)).endswith(
        "TensorFlow: Collective ops is aborted by: Socket closed"
    )
    assert str(lost_peer_error("wait", "JAX", TimeoutError())).endswith("JAX: TimeoutError")
    assert str(lost_peer_error("wait", "JAX", TimeoutError("10 s\nlong"))).endswith("JAX: 10 s")
