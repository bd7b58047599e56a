"""Canaries: they fail when a Keras release moves a private name."""

import contextlib
import inspect
import threading

import keras
import numpy as np
import pytest

from keras_deepseek.backend.keras_private import callbacks as private
from keras_deepseek.backend.keras_private.callbacks import (
    SET_BY_KERAS,
    GroupedCallbackList,
    active_callbacks,
    finish_callbacks,
    grouped_callbacks,
    trained_model,
)


def test_callbacks_in_a_thread_of_keras_s_can_be_waited_for():
    callbacks = keras.callbacks.CallbackList([])
    finish_callbacks(callbacks)


def test_a_callback_knows_its_model_by_what_keras_sets():
    callback, model = keras.callbacks.Callback(), keras.Sequential()
    assert {*SET_BY_KERAS} == {*vars(callback)} - {"validation_data"}
    callback.set_model(model)
    assert trained_model(callback) is model


def test_a_callback_finds_those_beside_it():
    class Curious(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.found = active_callbacks(self)

    curious, other = Curious(), keras.callbacks.Callback()
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(np.ones((2, 1)), np.ones(2), verbose=0, callbacks=[other, curious])
    assert curious in curious.found
    assert other in curious.found
    assert active_callbacks(other) == [other]


IN_A_THREAD = pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="Keras calls them after each batch there."
)


class Seeing(keras.callbacks.Callback):
    async_safe = True

    def __init__(self, fails_at=None):
        super().__init__()
        self.fails_at = fails_at
        self.batches, self.threads = [], set()

    def on_train_batch_end(self, batch, logs=None):
        if batch == self.fails_at:
            raise ValueError("the callback fails")
        self.batches.append(batch)
        self.threads.add(threading.current_thread())


@pytest.fixture
def clock(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(private.time, "monotonic", lambda: clock[0])
    return clock


@pytest.mark.parametrize("groups", [True, False])
def test_fit_groups_its_callbacks(groups):
    class Watching(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            callers = [frame.frame.f_locals.get("self") for frame in inspect.stack()]
            self.is_grouped = any(isinstance(caller, GroupedCallbackList) for caller in callers)

    watching = Watching()
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with grouped_callbacks() if groups else contextlib.nullcontext():
        model.fit(np.ones((2, 1)), np.ones(2), verbose=0, callbacks=[watching])
    assert watching.is_grouped == groups


@IN_A_THREAD
def test_the_ends_of_batches_are_handed_over_in_groups_and_in_order(clock):
    seeing = Seeing()
    callbacks = GroupedCallbackList([seeing])
    callbacks.on_train_begin()
    for batch in range(10):
        callbacks.on_train_batch_end(batch, {"loss": 1.0})
    assert seeing.batches in ([], [0])  # The first is handed over at once.
    clock[0] += 1.0
    callbacks.on_train_batch_end(10, {"loss": 1.0})
    callbacks.on_train_batch_end(11, {"loss": 1.0})
    finish_callbacks(callbacks)
    assert seeing.batches == [*range(12)]
    assert threading.current_thread() in seeing.threads  # Of the last.
    assert len(seeing.threads) > 1
    callbacks.on_train_batch_end(12, {"loss": 1.0})
    callbacks.on_train_end()
    assert seeing.batches == [*range(13)]


@IN_A_THREAD
def test_the_error_of_a_callback_in_a_thread_ends_the_training(clock):
    callbacks = GroupedCallbackList([Seeing(fails_at=0)])
    callbacks.on_train_begin()
    callbacks.on_train_batch_end(0)
    with pytest.raises(ValueError, match="the callback fails"):
        callbacks.on_epoch_end(0)


def test_callbacks_that_are_not_safe_in_a_thread_are_called_after_each_batch():
    seeing = Seeing()
    seeing.async_safe = False
    callbacks = GroupedCallbackList([seeing])
    callbacks.on_train_begin()
    for batch in range(3):
        callbacks.on_train_batch_end(batch)
        assert seeing.batches[-1] == batch
    callbacks.on_train_end()


def test_without_callbacks_no_thread_is_started():
    callbacks = GroupedCallbackList([], add_history=False)
    before = threading.active_count()
    callbacks.on_predict_begin()
    callbacks.on_predict_batch_end(0, {"outputs": np.ones(2)})
    callbacks.on_predict_end()
    callbacks.on_test_begin()
    callbacks.on_test_batch_end(0, {"loss": np.ones(())})
    assert threading.active_count() == before
    callbacks.on_test_end()
