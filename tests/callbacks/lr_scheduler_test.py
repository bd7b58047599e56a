import logging
import math

import keras
import numpy as np
import pytest

from keras_deepseek.callbacks import LRScheduler, lr_scheduler
from keras_deepseek.errors import InvalidInputError


def warmup_lr(step, total_steps, initial_lr, final_lr):
    return initial_lr + (final_lr - initial_lr) * step / total_steps


def one_weight_model():
    """Its gradient is 1 at every step, so plain SGD moves the weight by the learning rate."""
    model = keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros"),
        ]
    )
    model.compile(keras.optimizers.SGD(99.0), loss=lambda y_true, y_pred: keras.ops.mean(y_pred))
    return model


class WeightRecorder(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.weights = [0.0]

    def on_train_batch_end(self, batch, logs=None):
        kernel = self.model.layers[-1].kernel
        self.weights.append(float(keras.ops.convert_to_numpy(kernel)[0, 0]))


def fit(model, scheduler, steps, epochs=1, further_callbacks=()):
    recorder = WeightRecorder()
    recorder.weights = [float(keras.ops.convert_to_numpy(model.layers[-1].kernel)[0, 0])]
    model.fit(
        np.ones((steps, 1)),
        np.zeros((steps, 1)),
        batch_size=1,
        epochs=epochs,
        verbose=0,
        callbacks=[scheduler, recorder, *further_callbacks],
    )
    return -np.diff(recorder.weights)


def test_each_step_is_made_with_its_own_rate():
    scheduler = LRScheduler(func=warmup_lr, total_steps=8, initial_lr=0.5, final_lr=2.5)
    moved = fit(one_weight_model(), scheduler, steps=6, epochs=2)
    expected = [warmup_lr(min(step, 8), 8, 0.5, 2.5) for step in range(12)]
    np.testing.assert_allclose(moved, expected, rtol=1e-5)


def test_a_second_fit_goes_on_where_the_first_stopped():
    model = one_weight_model()
    scheduler = LRScheduler(func=warmup_lr, total_steps=8, initial_lr=1.0, final_lr=9.0)
    moved = np.concatenate([fit(model, scheduler, 3), fit(model, scheduler, 3)])
    np.testing.assert_allclose(moved, [1, 2, 3, 4, 5, 6], rtol=1e-5)


def test_the_rate_is_in_the_history():
    model = one_weight_model()
    history = model.fit(
        np.ones((4, 1)),
        np.zeros((4, 1)),
        batch_size=1,
        epochs=2,
        verbose=0,
        callbacks=[LRScheduler(func=warmup_lr, total_steps=8, initial_lr=0.0, final_lr=8.0)],
    )
    np.testing.assert_allclose(history.history["learning_rate"], [3.0, 7.0])


def test_a_loss_scaling_optimizer_is_scheduled_too():
    model = one_weight_model()
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(99.0))
    model.compile(optimizer, loss=model.loss)
    scheduler = LRScheduler(func=warmup_lr, total_steps=2, initial_lr=1.0, final_lr=3.0)
    np.testing.assert_allclose(fit(model, scheduler, 3), [1, 2, 3], rtol=1e-5)


@pytest.mark.parametrize("returned", [-1.0, float("nan"), float("inf"), None, "fast"])
def test_what_is_no_rate_is_refused_with_its_step(returned):
    scheduler = LRScheduler(func=lambda *_: returned, total_steps=8)
    with pytest.raises(InvalidInputError, match="for step 3"):
        scheduler.learning_rate(3)


@pytest.mark.parametrize(
    "arguments",
    [
        {"func": 0.1, "total_steps": 5},
        {"func": lambda step: 0.1, "total_steps": 5},
        {"func": warmup_lr},
        {"func": warmup_lr, "total_steps": "10"},
        {"func": warmup_lr, "total_steps": 10.5},
        {"func": warmup_lr, "total_steps": 10, "initial_lr": "0"},
        {"func": warmup_lr, "total_steps": 10, "final_lr": float("nan")},
    ],
)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(InvalidInputError):
        LRScheduler(**{"total_steps": 0, **arguments})


def test_a_schedule_in_the_optimizer_is_not_overruled():
    model = one_weight_model()
    schedule = keras.optimizers.schedules.CosineDecay(1.0, 10)
    model.compile(keras.optimizers.SGD(schedule), loss=model.loss)
    with pytest.raises(InvalidInputError, match="received 2: the optimizer's learning_rate"):
        fit(model, LRScheduler(func=warmup_lr, total_steps=5), 2)


IS_COMPILED = keras.backend.backend() != "torch"


def bend(step, total_steps, initial_lr, final_lr):
    """Nothing that a tensor could go through."""
    if step < 3:
        return initial_lr
    return final_lr * (1 + math.cos(math.pi * step / total_steps)) / 2


class RateRecorder(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.rates = []

    def on_train_batch_end(self, batch, logs=None):
        rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        self.rates.append(np.float32(rate))


@pytest.mark.parametrize("most", [1_000_000, 5])
def test_the_rates_are_those_of_the_function_to_the_bit(monkeypatch, caplog, most):
    monkeypatch.setattr(lr_scheduler, "_MOST_IN_STEP", most)
    scheduler, recorder = LRScheduler(func=bend, total_steps=7, initial_lr=0.3), RateRecorder()
    with caplog.at_level(logging.DEBUG, "keras_deepseek"):
        one_weight_model().fit(
            np.ones((9, 1)), np.ones(9), batch_size=1, verbose=0, callbacks=[scheduler, recorder]
        )
    assert recorder.rates == [np.float32(bend(min(step, 7), 7, 0.3, 0.001)) for step in range(9)]
    in_step = IS_COMPILED and most > 7
    assert ("part of the compiled step" if in_step else "set before each step") in caplog.text


@pytest.mark.skipif(not IS_COMPILED, reason="Keras refuses it on torch itself")
def test_several_steps_in_one_execution_have_each_their_rate(monkeypatch):
    model = one_weight_model()
    model.compile(keras.optimizers.SGD(99.0), loss=model.loss, steps_per_execution=4)
    scheduler = LRScheduler(func=bend, total_steps=8, initial_lr=0.5, final_lr=1.0)
    moved = fit(model, scheduler, 8)
    rates = [bend(step, 8, 0.5, 1.0) for step in range(8)]
    np.testing.assert_allclose(moved, [sum(rates[:4]), sum(rates[4:])], rtol=1e-6)
    monkeypatch.setattr(lr_scheduler, "_MOST_IN_STEP", 7)
    with pytest.raises(InvalidInputError, match="steps_per_execution=1"):
        fit(model, LRScheduler(func=bend, total_steps=8), 8)


def test_trainings_before_after_and_after_a_failure_have_no_schedule():
    """Each of them has its compiled step, and that with the schedule is compiled once."""

    class Failing(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise ArithmeticError("no")

    calls = []

    def warm_up(*arguments):
        calls.append(arguments[0])
        return warmup_lr(*arguments)

    model, nothing = one_weight_model(), keras.callbacks.Callback()
    scheduler = LRScheduler(func=warm_up, total_steps=9, initial_lr=1.0, final_lr=10.0)
    np.testing.assert_allclose(fit(model, nothing, 1), [99.0])
    plain = model.train_function
    np.testing.assert_allclose(fit(model, scheduler, 2), [2.0, 3.0], rtol=1e-5)
    if IS_COMPILED:
        assert model.train_function is plain
        assert calls == list(range(10))
    np.testing.assert_allclose(fit(model, nothing, 2), [3.0, 3.0], rtol=1e-5)
    with pytest.raises(ArithmeticError, match="no"):
        fit(model, scheduler, 1, further_callbacks=[Failing()])
    np.testing.assert_allclose(fit(model, nothing, 2), [6.0, 6.0], rtol=1e-5)
    np.testing.assert_allclose(fit(model, scheduler, 1), [9.0], rtol=1e-5)
    if IS_COMPILED:
        assert model.train_function is plain
        assert calls == list(range(10))


def test_the_step_is_the_count_of_updates_where_gradients_are_accumulated():
    model = one_weight_model()
    optimizer = keras.optimizers.SGD(99.0, gradient_accumulation_steps=2)
    model.compile(optimizer, loss=model.loss)
    scheduler = LRScheduler(func=warmup_lr, total_steps=8, initial_lr=1.0, final_lr=9.0)
    np.testing.assert_allclose(fit(model, scheduler, 6), [0, 1, 0, 2, 0, 3], rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LRScheduler(func=warmup_lr, total_steps=5),
        lambda: keras.callbacks.ReduceLROnPlateau("loss"),
        lambda: keras.callbacks.LearningRateScheduler(lambda epoch: 0.1),
    ],
)
def test_a_second_schedule_is_refused_before_the_first_step(make):
    model, scheduler = one_weight_model(), LRScheduler(func=warmup_lr, total_steps=5)
    with pytest.raises(InvalidInputError, match="only one schedule, received 2: LRScheduler, "):
        model.fit(np.ones((2, 1)), np.ones(2), verbose=0, callbacks=[scheduler, make()])
    assert int(model.optimizer.iterations) == 0
