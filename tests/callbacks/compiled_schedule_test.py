import keras
import numpy as np
import pytest

from keras_deepseek.callbacks.lr_scheduler import CompiledSchedule

X = np.ones((4, 1), "float32")


def build():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(99.0), "mse")
    return model


def rate_after(model):
    model.train_on_batch(X, X)
    return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="On torch no step is compiled.")
def test_a_step_has_its_rate_when_it_is_announced():
    model, compiled_schedule = build(), CompiledSchedule(np.array([0.5, 0.25]))
    assert rate_after(model) == 99.0
    plain = model.train_function
    assert compiled_schedule.install(model)
    compiled_schedule.announce()
    assert rate_after(model) == 0.25
    model.optimizer.learning_rate = 2.0
    assert rate_after(model) == 2.0
    compiled_schedule.remove(model)
    compiled_schedule.announce()
    assert rate_after(model) == 2.0
    assert model.train_function is plain
    model.compile(keras.optimizers.SGD(99.0), "mse")
    model.make_train_function()
    assert compiled_schedule.install(model)
    compiled_schedule.announce()
    assert rate_after(model) == 0.5


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="For steps made from Python.")
def test_a_step_that_is_made_from_python_is_left_alone():
    model = build()
    assert not CompiledSchedule(np.array([0.5])).install(model)
    assert "train_step" not in vars(model)
