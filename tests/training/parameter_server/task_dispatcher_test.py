from concurrent.futures import CancelledError
from types import SimpleNamespace

import numpy as np
import pytest

from keras_deepseek.backend.processes.task_cluster import ResultLostError
from keras_deepseek.errors import PeerLostError
from keras_deepseek.training.parameter_server import task_dispatcher
from keras_deepseek.training.parameter_server.staleness import StalenessBound
from keras_deepseek.training.parameter_server.task_dispatcher import TaskDispatcher
from tests.oracles.eager_tasks import EagerTasks


class Remote:
    """Servers that write down what they are told."""

    def __init__(self):
        self.told = []

    def write(self, values):
        self.told.append(("write", values))

    def update(self, slot, rate):
        self.told.append(("update", slot, rate))

    def read(self, num_updates):
        return ["values", num_updates]


class Step:
    """Returns the number of its batch, which is its one seed."""

    def __init__(self):
        self.remote = Remote()
        self.seeds = SimpleNamespace(of=lambda number: [number])

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
    monkeypatch.setattr(task_dispatcher, "_LOOK_EVERY", 0.001)

    def make(bound, num_slots=3, timeout=60.0):
        cluster, step, tasks = EagerTasks(), Step(), Tasks()
        dispatcher = TaskDispatcher(
            cluster,
            step,
            num_slots=num_slots,
            staleness=StalenessBound(bound, 2, looks_ahead=False),
            timeout=timeout,
            tasks=tasks,
        )
        dispatcher.begin(10, ["first"], [])
        return dispatcher, cluster, step.remote, tasks

    return make


@pytest.mark.parametrize(("bound", "at_once"), [(0, 1), (1, 2), (9, 3)])
def test_no_more_are_handed_out_than_bound_and_slots_allow(make, bound, at_once):
    dispatcher, cluster, remote, _ = make(bound)
    while dispatcher.may_hand():
        dispatcher.hand("batch", 0.5)
    assert (dispatcher.num_open, len(cluster.waiting)) == (at_once, at_once)
    assert remote.told == [("write", ["first"])]


def test_whichever_is_computed_first_is_updated_first(make):
    dispatcher, cluster, remote, tasks = make(9)
    for rate in (0.1, 0.2, 0.3):
        dispatcher.hand("batch", rate)
    cluster.compute(1)
    assert dispatcher.wait().logs == {"number": 11.0}
    assert [each[2] for each in remote.told[1:]] == [0.2]
    cluster.compute()
    cluster.compute()
    assert dispatcher.collect() == ["values", 13]
    assert [dispatcher.wait().logs["number"] for _ in range(2)] == [10.0, 12.0]
    assert tasks.num_updates == 3
    assert len({each[1] for each in remote.told[1:]}) == 3  # Each has had a slot of its own.


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
    assert len({each[1] for each in remote.told[1:]}) == 2


def test_a_result_that_is_lost_again_and_again_ends_the_training(make):
    dispatcher, cluster, _, _ = make(9)
    dispatcher.hand("batch", None)

    class Losing(list):
        def append(self, waiting):
            waiting[0].set_exception(ResultLostError("Gone."))

    cluster.waiting.pop(0)[0].set_exception(ResultLostError("Gone."))
    cluster.waiting = Losing()
    with pytest.raises(PeerLostError, match=r"batch 10 was lost 3 times.*Gone\."):
        dispatcher.wait()


def test_workers_that_were_all_told_to_stop_are_lost(make):
    dispatcher, cluster, _, _ = make(9)
    dispatcher.hand("batch", None)
    cluster.waiting[0][0].set_exception(CancelledError())
    with pytest.raises(PeerLostError, match="told to leave"):
        dispatcher.wait()
