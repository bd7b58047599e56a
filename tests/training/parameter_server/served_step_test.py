from collections import deque
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from keras_deepseek.backend.data.batch_source import BatchSource
from keras_deepseek.backend.data.batch_stream import BatchStream
from keras_deepseek.training.parameter_server.messages import Result
from keras_deepseek.training.parameter_server.served_step import ServedStep


class Batches(BatchSource):
    """The numbers from 0, as batches."""

    kind = "numbers"
    can_repeat = True
    uses_shared_generators = False
    is_length_exact = True

    def __init__(self, num_batches):
        self.num_batches = num_batches

    def own_rows(self, number, start):
        return iter([np.full((2, 1), row, "float32") for row in range(start, self.num_batches)])

    def read_state(self):
        return None

    def end_pass(self):
        pass


class FakeDispatcher:
    """Makes updates in the order of the batches, as many at once as it is told."""

    def __init__(self, at_once):
        self.at_once, self.open, self.handed, self.begun = at_once, deque(), [], []

    num_open = property(lambda self: len(self.open))

    def begin(self, number, values, variables):
        self.begun.append(number)
        self.values = values

    def go_on(self, values):
        self.begun.append("on")

    def may_hand(self):
        return len(self.open) < self.at_once

    def hand(self, batch, rate):
        self.handed.append(int(batch[0, 0]))
        self.open.append(batch)

    def wait(self):
        self.open.popleft()
        return Result({"norm": 1.0}, [np.float32(2.0), np.float32(1.0)], [])

    def collect(self):
        assert not self.open
        for values in self.values:
            values.weights[0] = np.full_like(values.weights[0], len(self.handed))
            values.optimizer[0] = np.array(len(self.handed))
        return self.values


@pytest.fixture
def model():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    model.optimizer.build(model.trainable_variables)
    model.evaluate(np.zeros((1, 1)), np.zeros((1, 1)), verbose=0)  # Makes its metrics.
    return model


def start(model, at_once):
    dispatcher = FakeDispatcher(at_once)
    stopped = []
    serving = SimpleNamespace(
        start=lambda variables, batch: dispatcher,
        stop=lambda **how: stopped.append(how),
    )
    return ServedStep(model, serving, 1), dispatcher, stopped


def run_epoch(step, stream):
    stream.begin_epoch()
    logs = [step(batch) for batch in stream.batches()]
    stream.end_epoch()
    return logs


@pytest.mark.parametrize("at_once", [1, 3, 20])
def test_batches_are_handed_once_in_their_order_and_counted_by_epoch(model, at_once):
    step, dispatcher, stopped = start(model, at_once)
    stream = BatchStream(Batches(5), None)
    pauses = SimpleNamespace(num_until_pause=None)
    with step.training(stream, pauses):
        for epoch in (1, 2):
            model.reset_metrics()
            logs = run_epoch(step, stream)
            assert dispatcher.handed == [*range(5)] * epoch
            assert step.num_open == 0
            # The chief has what the servers hold.
            kernel = keras.ops.convert_to_numpy(model.trainable_variables[0].value)
            assert kernel == 5 * epoch
            assert int(model.optimizer.iterations) == 5 * epoch
    assert [log["norm"] for log in logs] == [1.0] * 5
    assert float(logs[-1]["loss"]) == 2.0
    assert dispatcher.begun == [0, "on"]
    assert stopped == [{"is_clean": True}]


def test_no_batch_is_under_way_at_a_pause(model):
    step, dispatcher, _ = start(model, 3)
    stream = BatchStream(Batches(7), None)
    num_made = 0

    class Pauses:
        num_until_pause = property(lambda self: 4 - num_made % 4)

    with step.training(stream, Pauses()):
        stream.begin_epoch()
        for batch in stream.batches():
            step(batch)
            num_made += 1
            assert (step.num_open == 0) == (num_made in (4, 7))
    assert dispatcher.handed == list(range(7))


def test_a_pause_that_nobody_expected_lets_what_is_under_way_be_made(model):
    step, dispatcher, _ = start(model, 3)
    stream = BatchStream(Batches(9), None)
    with step.training(stream, SimpleNamespace(num_until_pause=None)):
        stream.begin_epoch()
        batches = stream.batches()
        step(next(batches))
        assert step.num_open == 3
        step.pause(is_paused=True)
        for num_left in (2, 1, 0):
            step(next(batches))
            assert step.num_open == num_left
        position = stream.read_position(4)
        assert (position["taken"], dispatcher.handed) == (4, [0, 1, 2, 3])


def test_what_a_callback_has_changed_goes_to_the_servers(model):
    step, dispatcher, _ = start(model, 2)
    stream = BatchStream(Batches(2), None)
    with step.training(stream, SimpleNamespace(num_until_pause=None)):
        run_epoch(step, stream)
        model.trainable_variables[0].assign([[7.0]])
        run_epoch(step, stream)
    assert dispatcher.begun == [0, 2]


def test_a_training_that_fails_ends_its_actors(model):
    step, _, stopped = start(model, 2)
    stream = BatchStream(Batches(2), None)
    with (
        pytest.raises(ZeroDivisionError),
        step.training(stream, SimpleNamespace(num_until_pause=None)),
    ):
        raise ZeroDivisionError
    assert stopped == [{"is_clean": False}]
    assert stream.on_take is None
