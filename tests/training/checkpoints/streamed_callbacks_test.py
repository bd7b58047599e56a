import keras
import numpy as np
import pytest

from keras_deepseek.backend.processes.processes import OneProcess
from keras_deepseek.training.checkpoints.streamed_training import feed

X, Y = np.ones((12, 3)), np.ones((12, 1))


class Others(OneProcess):
    """Processes that answer a step later, as several do; another one wishes to stop at a step."""

    def __init__(self, stops_at=None):
        self.asked = 0
        self.stops_at = stops_at
        self.previous_answer = [False]

    def all_reduce_flags(self, flags):
        self.asked += 1
        answer = self.previous_answer
        self.previous_answer = [flags[0] or self.asked == self.stops_at]
        return answer

    def all_reduce_flags_now(self, flags):
        previous_flags = self.all_reduce_flags(flags)
        answer, self.previous_answer = self.previous_answer, [False]
        return [previous_flags[0] or answer[0]]


class Stop(keras.callbacks.Callback):
    def __init__(self, at):
        super().__init__()
        self.at = at
        self.batches = []

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(batch)
        if len(self.batches) == self.at:
            self.model.stop_training = True


def train(processes, stops_at=None):
    """Returns the batches of all steps, of three epochs of four."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    stop = Stop(stops_at)
    arguments = {"x": X, "y": Y, "batch_size": 3, "epochs": 3, "callbacks": [stop], "verbose": 0}
    with feed(model, arguments, processes, needs_stream=True) as fit_arguments:
        model.fit(**fit_arguments)
    return stop.batches


def test_a_process_alone_stops_at_once():
    assert train(OneProcess(), stops_at=2) == [0, 1]


@pytest.mark.parametrize("processes", [OneProcess(), Others()])
def test_the_end_of_an_epoch_is_not_that_of_the_training(processes):
    assert train(processes) == [0, 1, 2, 3] * 3


def test_a_process_stops_a_step_after_its_request():
    assert train(Others(), stops_at=2) == [0, 1, 2]


def test_a_process_stops_if_another_one_does():
    assert train(Others(stops_at=1)) == [0, 1]


def test_a_stop_at_the_end_of_an_epoch_takes_effect_there():
    assert train(Others(), stops_at=4) == [0, 1, 2, 3]


def test_a_stop_of_another_process_at_the_end_of_an_epoch_takes_effect_there():
    assert train(Others(stops_at=4)) == [0, 1, 2, 3]
