import random

import numpy as np
import pytest

from keras_deepseek.errors import PeerLostError
from keras_deepseek.training.parameter_server.dispatcher import Dispatcher
from keras_deepseek.training.parameter_server.workers import ProcessEndedError, StalenessBound
from tests.oracles.simulated_actors import NUM_BATCHES, SimulatedActors, first_values


def train(actors, num_batches=40, bound=8, snapshot_every=5):
    staleness = StalenessBound(bound, actors.num_workers)
    dispatcher = Dispatcher(actors, staleness, snapshot_every=snapshot_every, timeout=1.0)
    dispatcher.begin(0, [first_values() for _ in range(actors.num_servers)], [])
    results = []
    for batch in range(num_batches):
        while dispatcher.num_open and not dispatcher.may_hand():
            results.append(dispatcher.wait())
        dispatcher.hand(batch, None)
    while dispatcher.num_open:
        results.append(dispatcher.wait())
    return dispatcher, results


@pytest.mark.parametrize("seed", range(60))
def test_every_update_is_made_once_by_each_server_whoever_dies(seed):
    choose = random.Random(seed)
    # Two deaths of workers may be by one batch, three would be taken for its doing.
    actors = SimulatedActors(
        num_workers=choose.randint(1, 4),
        num_servers=choose.randint(1, 3),
        choose=choose,
        num_worker_deaths=choose.randint(0, 2),
        num_server_deaths=choose.randint(0, 3),
    )
    dispatcher, results = train(actors, 40, choose.randint(0, 12), choose.randint(1, 20))
    # Each was counted once, and so each server has it, however many have died.
    assert sorted(result.logs["batch"] for result in results) == list(range(40))
    expected = np.where(np.arange(NUM_BATCHES) < 40, 1.0, 0.0)
    for values in dispatcher.collect():
        np.testing.assert_array_equal(values.weights[0], expected)
        assert values.num_updates == 40


@pytest.mark.parametrize("bound", [0, 1, 5])
def test_no_update_misses_more_updates_than_the_bound(bound):
    actors = SimulatedActors(3, 2, random.Random(1))
    train(actors, bound=bound)
    assert max(server.most_missed() for server in actors.servers) <= bound


def test_a_bound_of_zero_takes_the_batches_in_their_order():
    actors = SimulatedActors(3, 1, random.Random(1))
    _, results = train(actors, bound=0)
    assert [result.logs["batch"] for result in results] == list(range(40))


def test_batches_that_all_snapshots_have_are_not_kept():
    actors = SimulatedActors(2, 2, random.Random(1))
    dispatcher, _ = train(actors, snapshot_every=5)
    assert len(dispatcher._unsnapshotted) < 20


def test_a_batch_that_workers_die_of_is_named():
    actors = SimulatedActors(2, 1, random.Random(1))
    actors.fails_on = 7
    with pytest.raises(PeerLostError, match="Batch 7 was lost 3 times"):
        train(actors)


def test_a_worker_that_does_not_come_back_is_done_without(monkeypatch):
    actors = SimulatedActors(3, 1, random.Random(1), num_worker_deaths=2)
    number_of = dict.fromkeys(range(3), 0)
    set_up = actors.set_up_worker

    def set_up_once(worker, variables):
        number_of[worker] += 1
        return set_up(worker, variables) if number_of[worker] == 1 else actors._promise(_raise)

    def _raise():
        raise ProcessEndedError("Ray has given it up.")

    monkeypatch.setattr(actors, "set_up_worker", set_up_once)
    _, results = train(actors)
    assert len(results) == 40
    assert max(number_of.values()) == 2


def test_no_worker_that_is_left_is_said(monkeypatch):
    actors = SimulatedActors(1, 1, random.Random(1))

    def refuse(worker, variables):
        def act():
            raise ProcessEndedError("It can't begin.")

        return actors._promise(act)

    monkeypatch.setattr(actors, "set_up_worker", refuse)
    with pytest.raises(PeerLostError, match="All 1 workers of the parameter server have ended"):
        train(actors)


def test_an_error_of_a_batch_comes_to_who_waits(monkeypatch):
    actors = SimulatedActors(2, 1, random.Random(1))
    result = actors.result

    def fail(future):
        answer = result(future)
        if getattr(answer, "logs", {}).get("batch") == 3.0:
            raise ValueError("The loss is none.")
        return answer

    monkeypatch.setattr(actors, "result", fail)
    with pytest.raises(ValueError, match="The loss is none"):
        train(actors)


def test_who_does_not_answer_is_ended(monkeypatch):
    actors = SimulatedActors(2, 1, random.Random(1))
    ended = []
    wait, compute = actors.wait, actors.compute
    hanging = []

    def compute_or_hang(worker, task):
        future = compute(worker, task)
        if task.number == 5 and not ended:
            hanging.append(future)
        return future

    def wait_in_time(futures, timeout):
        answering = [future for future in futures if future not in hanging]
        return wait(answering, timeout) if answering else []

    def end(workers):
        ended.append(workers)
        for future in hanging:
            actors._pending.pop(future, None)
            actors._found[future] = ProcessEndedError("It was ended.")
        hanging.clear()

    monkeypatch.setattr(actors, "compute", compute_or_hang)
    monkeypatch.setattr(actors, "wait", wait_in_time)
    monkeypatch.setattr(actors, "restart_workers", end)
    _, results = train(actors, bound=2)
    assert len(ended) == 1
    assert sorted(result.logs["batch"] for result in results) == list(range(40))


def test_workers_that_do_not_answer_after_a_restart_end_the_training(monkeypatch):
    actors = SimulatedActors(2, 1, random.Random(1))
    wait, compute, restarted = actors.wait, actors.compute, []
    hanging = []

    def compute_and_hang(worker, task):
        hanging.append(compute(worker, task))
        return hanging[-1]

    def wait_in_time(futures, timeout):
        answering = [future for future in futures if future not in hanging]
        return wait(answering, timeout) if answering else []

    monkeypatch.setattr(actors, "compute", compute_and_hang)
    monkeypatch.setattr(actors, "wait", wait_in_time)
    monkeypatch.setattr(actors, "restart_workers", restarted.append)
    with pytest.raises(PeerLostError, match="No worker has answered for 2 seconds"):
        train(actors)
    assert [sorted(workers) for workers in restarted] == [[0, 1]]


def test_a_worker_that_died_while_it_had_nothing_to_do_is_made_ready_again(monkeypatch):
    actors = SimulatedActors(2, 1, random.Random(1))
    compute, set_up, made_ready = actors.compute, actors.set_up_worker, []

    def compute_or_not(worker, task):
        is_empty = task.number == 5 and len(made_ready) == 2
        return actors._promise(lambda: None) if is_empty else compute(worker, task)

    def note(worker, variables):
        made_ready.append(worker)
        return set_up(worker, variables)

    monkeypatch.setattr(actors, "compute", compute_or_not)
    monkeypatch.setattr(actors, "set_up_worker", note)
    _, results = train(actors)
    assert len(made_ready) == 3
    assert sorted(result.logs["batch"] for result in results) == list(range(40))
