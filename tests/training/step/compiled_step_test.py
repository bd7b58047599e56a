import keras
import numpy as np
import pytest

from keras_deepseek.training import Trainer
from keras_deepseek.training.step.compiled_step import CompiledStep

X = np.ones((4, 2), "float32")


class CountedStep:
    """A model's own step, which counts how often it is traced, or called where nothing is."""

    def __init__(self, model):
        self.own, self.calls = model.train_step, 0

    def __call__(self, *arguments):
        self.calls += 1
        return self.own(*arguments)


def build():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    return model


def fit(model):
    model.fit(X, X, verbose=0)


def test_the_step_is_compiled_once():
    model = build()
    step = CountedStep(model)
    in_place = CompiledStep(model, step)
    with in_place.use():
        fit(model)
    calls = step.calls
    assert calls
    assert "train_step" not in vars(model)
    fit(model)
    assert step.calls == calls
    with in_place.use():
        fit(model)
    assert step.calls == calls + (keras.backend.backend() == "torch")


def test_the_step_is_compiled_again_after_model_compile():
    model = build()
    step = CountedStep(model)
    in_place = CompiledStep(model, step)
    with in_place.use():
        fit(model)
    calls = step.calls
    model.compile("adam", "mse")
    with in_place.use():
        fit(model)
    assert step.calls > calls
    with in_place.use():
        model.compile("sgd", "mse")
    fit(model)


def test_the_models_own_step_is_restored():
    model = build()
    model.train_step = model_step = CountedStep(model)
    with CompiledStep(model, CountedStep(model)).use():
        assert model.train_step is not model_step
    assert model.train_step is model_step


def test_after_an_error_the_model_is_restored():
    model = build()

    def fail(*arguments):
        raise ArithmeticError("no step")

    def fit_and_fail_once_more():
        with CompiledStep(model, fail).use():
            try:
                fit(model)
            except ArithmeticError as error:
                raise TypeError("while tidying up") from error

    with pytest.raises(ArithmeticError, match="no step"):
        fit_and_fail_once_more()
    assert "train_step" not in vars(model)
    fit(model)


def test_moving_averages_that_became_the_weights_are_trained_on():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    trainer = Trainer(model, optimizer=keras.optimizers.Adam(use_ema=True), loss="mse")
    x, y = np.ones((8, 4)), np.ones((8, 1))
    for _ in range(3):
        history = trainer.fit(x, y, verbose=0)
        trainer.evaluate(x, y, verbose=0)  # On JAX a model gives away the memory of its weights.
        model.predict(x, verbose=0)
    assert np.isfinite(history.history["loss"][0])
    assert int(model.optimizer.iterations) == 3
