import json
import os
import subprocess
import sys
from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from keras_deepseek.backend.processes.task_cluster import ResultLostError
from keras_deepseek.errors import PeerLostError
from keras_deepseek.training.parameter_server import coordinator_engine
from keras_deepseek.training.parameter_server.coordinator_engine import CoordinatorWorkers
from keras_deepseek.training.parameter_server.dispatcher import Dispatcher
from keras_deepseek.training.parameter_server.workers import StalenessBound
from tests.oracles.eager_tasks import EagerTasks

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="chief_test.py is for JAX and PyTorch."
)
ROOT = Path(__file__).parents[3]


class Remote:
    """Servers that write down what they are told."""

    def __init__(self):
        self.calls = []

    def write(self, server, values):
        self.calls.append(("write", server, values))

    def update(self, slot, rate):
        self.calls.append(("update", slot, rate))

    def read(self, server):
        return f"values of {server}"


class Step:
    """Returns the number of its batch, which is its one seed."""

    seeds = SimpleNamespace(of=lambda number: [number])

    def __call__(self, batch, seeds, slot):
        return {"number": float(seeds[0])}, [np.float32(slot)]


class Tasks:
    def __init__(self):
        self.looks, self.num_updates = [], 0

    def look_after(self, ends_workers=False):
        self.looks.append(ends_workers)

    def note_update(self):
        self.num_updates += 1


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setattr(coordinator_engine, "_CHECK_EVERY", 0.001)

    def make(bound, num_slots=3, timeout=60.0):
        cluster, remote, tasks = EagerTasks(), Remote(), Tasks()
        dispatcher = Dispatcher(
            CoordinatorWorkers(cluster, Step(), remote, tasks, num_slots),
            StalenessBound(bound, 2, looks_ahead=False),
            snapshot_every=None,
            timeout=timeout,
        )
        dispatcher.begin(10, ["first", "second"], [])
        del remote.calls[:2]
        return dispatcher, cluster, remote, tasks

    return make


def test_each_server_gets_its_values():
    remote = Remote()
    workers = CoordinatorWorkers(EagerTasks(), Step(), remote, Tasks(), 3)
    dispatcher = Dispatcher(
        workers, StalenessBound(9, 2, looks_ahead=False), snapshot_every=None, timeout=60.0
    )
    dispatcher.begin(10, ["first", "second"], [])
    assert remote.calls == [("write", 0, "first"), ("write", 1, "second")]


@pytest.mark.parametrize(("bound", "at_once"), [(0, 1), (1, 2), (9, 3)])
def test_no_more_are_handed_out_than_bound_and_slots_allow(make, bound, at_once):
    dispatcher, cluster, remote, _ = make(bound)
    while dispatcher.may_hand():
        dispatcher.hand("batch", 0.5)
    assert (dispatcher.num_open, len(cluster.waiting)) == (at_once, at_once)
    assert remote.calls == []


def test_whichever_is_computed_first_is_updated_first(make):
    dispatcher, cluster, remote, tasks = make(9)
    for rate in (0.1, 0.2, 0.3):
        dispatcher.hand("batch", rate)
    cluster.compute(1)
    assert dispatcher.wait().logs == {"number": 11.0}
    assert [call[2] for call in remote.calls] == [0.2]
    cluster.compute()
    cluster.compute()
    assert dispatcher.collect() == ["values of 0", "values of 1"]
    assert [dispatcher.wait().logs["number"] for _ in range(2)] == [10.0, 12.0]
    assert tasks.num_updates == 3
    assert len({call[1] for call in remote.calls}) == 3  # Each has had a slot of its own.


def test_tasks_are_looked_after_while_nothing_comes_and_ended_where_nothing_does(make):
    dispatcher, _, _, tasks = make(9, timeout=0.01)
    dispatcher.hand("batch", None)
    with pytest.raises(PeerLostError, match=r"No worker has answered for 0\.02 seconds"):
        dispatcher.wait()
    assert tasks.looks.count(True) == 1
    assert tasks.looks.count(False) > 1


def test_the_error_of_a_worker_is_raised_and_not_that_others_were_told_to_stop(make):
    dispatcher, cluster, _, _ = make(9)
    for _ in range(2):
        dispatcher.hand("batch", None)
    cluster.waiting[0][0].set_exception(CancelledError())
    cluster.waiting[1][0].set_exception(ZeroDivisionError("Its own."))
    with pytest.raises(ZeroDivisionError, match="Its own"):
        dispatcher.wait()


def test_a_batch_whose_result_has_gone_with_its_worker_is_computed_again(make):
    dispatcher, cluster, remote, tasks = make(9)
    for _ in range(2):
        dispatcher.hand("batch", None)
    cluster.waiting.pop(0)[0].set_exception(ResultLostError("Gone."))
    cluster.compute()
    assert dispatcher.wait().logs == {"number": 11.0}
    assert tasks.looks == [False]
    assert dispatcher.num_open == 1
    cluster.compute()
    assert dispatcher.wait().logs == {"number": 10.0}
    assert len({call[1] for call in remote.calls}) == 2


def test_a_result_that_is_lost_again_and_again_ends_the_training(make):
    dispatcher, cluster, _, _ = make(9)
    dispatcher.hand("batch", None)

    class Losing(list):
        def append(self, waiting):
            waiting[0].set_exception(ResultLostError("Gone."))

    cluster.waiting.pop(0)[0].set_exception(ResultLostError("Gone."))
    cluster.waiting = Losing()
    with pytest.raises(PeerLostError, match=r"Batch 10 was lost 3 times.*Gone\."):
        dispatcher.wait()


def test_workers_that_were_all_told_to_stop_are_lost(make):
    dispatcher, cluster, _, _ = make(9)
    dispatcher.hand("batch", None)
    cluster.waiting[0][0].set_exception(CancelledError())
    with pytest.raises(PeerLostError, match="TensorFlow has cancelled all batches"):
        dispatcher.wait()


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


def check_same(results, ways):
    """With a bound of zero they have the very numbers, whatever a step does."""
    for way in ways:
        assert results[way]["logs"] < 1e-4, way
        assert results[way].get("weights", 0) < 1e-3, way
        assert len(set(results[way].get("steps", [1]))) == 1, way


@on_tensorflow
def test_trainings_by_workers_and_servers_are_those_of_one_process(tmp_path):
    """One test, since the tasks take long to begin, and a process connects to them once."""
    results = run_trainings(tmp_path, "first")
    check_same(results, ("plain", "after it"))

    # A worker that dies is taken back, and each update counts once.
    alone, served = results["worker"]["losses"]
    assert served < 1.02 * alone  # It may be better: the weights of a batch are a little older.
    assert results["worker"]["steps"] == 4 * 57
    assert results["worker"]["in_order"]

    # One that SIGTERM has ended goes on as one that was left alone.
    assert results["stopped"]["code"] == 0
    assert 13 <= results["stopped"]["stopped_after"] < 20
    assert results["stopped"]["logs"] < 1e-4

    kind, text = results["bad label"]
    assert kind == "InvalidInputError"
    assert "A worker could not compute a batch: Received a label value of 10" in text
    assert "The error came with batch 1 of epoch 1" in text

    kind, text = results["server"]
    assert kind == "PeerLostError"
    assert "erver" in text
    assert "fit(..., resume=True)" in text


@on_tensorflow
@pytest.mark.nightly
def test_whatever_a_step_does_it_is_that_of_one_process(tmp_path):
    results = run_trainings(tmp_path, "further")
    check_same(results, ("parts", "adaptive", "sparse", "distil"))
    assert results["half"]["logs"] < 1e-2  # Half precision, and layers that are computed anew.
    alone_loss, served_loss = results["dropout"]["losses"]
    assert alone_loss == served_loss
    for alone, served in zip(*results["encoder"]["losses"], strict=True):
        assert served < 1.02 * alone
