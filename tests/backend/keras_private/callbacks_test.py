"""Canaries: they fail when a Keras release moves a private name."""

import keras
import numpy as np

from keras_deepseek.backend.keras_private.callbacks import (
    SET_BY_KERAS,
    active_callbacks,
    finish_callbacks,
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
