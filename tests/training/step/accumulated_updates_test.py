"""Schedules, clipping and moving averages under gradient accumulation, counted by updates."""

import logging
import re

import keras
import numpy as np
import pytest

from keras_deepseek.callbacks import LRScheduler
from keras_deepseek.training import Trainer, WarmupDecay

X = np.random.default_rng(0).normal(size=(32, 3))
Y = X @ [[1.0], [-2.0], [0.5]] + 0.1
BATCH = 2
CLIP, MOMENTUM = 0.5, 0.8


def reference(epochs, accumulation, rate, overwrite=None, kernel=None):
    """Returns the weights and their averages after SGD that counts updates, in float64."""
    kernel = np.zeros((3, 1)) if kernel is None else kernel
    average, gradients, update = np.zeros((3, 1)), [], 0
    for start in [*range(0, len(X), BATCH)] * epochs:
        x, y = X[start : start + BATCH], Y[start : start + BATCH]
        gradients.append(2 * x.T @ (x @ kernel - y) / len(x))
        if len(gradients) < accumulation:
            continue
        gradient = np.mean(gradients, axis=0)
        kernel = kernel - rate(update) * gradient * min(1, CLIP / np.linalg.norm(gradient))
        average = kernel if update == 0 else MOMENTUM * average + (1 - MOMENTUM) * kernel
        gradients, update = [], update + 1
        if overwrite and update % overwrite == 0:
            kernel = average
    return kernel, average


def build():
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    return keras.Sequential([keras.Input((3,)), layer])


def train(model, optimizer, epochs=1, callbacks=(), **options):
    trainer = Trainer(
        model, optimizer=optimizer, loss="mse", gradient_clip=("global_norm", CLIP), **options
    )
    data = {"batch_size": BATCH, "shuffle": False, "verbose": 0, "epochs": epochs}
    trainer.fit(X.astype("float32"), Y.astype("float32"), callbacks=list(callbacks), **data)
    return trainer


@pytest.mark.parametrize(
    ("accumulation", "overwrite", "micro_batches"),
    [(4, 3, 1), (1, None, 1), (2, None, 2), (4, None, 1)],
)
def test_schedule_clip_and_averages_are_those_of_a_loop_over_updates(
    accumulation, overwrite, micro_batches
):
    num_updates = 3 * len(X) // BATCH // accumulation
    schedule = WarmupDecay(0.3, num_updates, warmup_steps=2, initial_lr=0.1)
    optimizer = keras.optimizers.SGD(
        schedule,
        use_ema=True,
        ema_momentum=MOMENTUM,
        ema_overwrite_frequency=overwrite,
        gradient_accumulation_steps=None if accumulation == 1 else accumulation,
    )
    model = build()
    train(model, optimizer, 3, micro_batches=micro_batches)
    _, average = reference(3, accumulation, lambda update: float(schedule(update)), overwrite)
    np.testing.assert_allclose(model.get_weights()[0], average, rtol=1e-5)  # As at the end of fit.


def test_a_callback_counts_updates_too():
    model = build()
    scheduler = LRScheduler(lambda step, *_: 0.3 - 0.03 * step, total_steps=8)
    train(model, keras.optimizers.SGD(gradient_accumulation_steps=4), 2, [scheduler])
    kernel, _ = reference(2, 4, scheduler.learning_rate)
    np.testing.assert_allclose(model.get_weights()[0], kernel, rtol=1e-5)


@pytest.mark.torch_alone
def test_the_schedule_in_a_saved_model_still_counts_updates(tmp_path):
    model = build()
    schedule = WarmupDecay(0.3, 8)
    train(model, keras.optimizers.SGD(schedule, gradient_accumulation_steps=4))
    assert schedule.gradient_accumulation_steps is None  # Another optimizer may have it too.
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert float(loaded.optimizer.learning_rate) == pytest.approx(float(schedule(4)))
    loaded.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0)
    assert float(loaded.optimizer.learning_rate) == 0


@pytest.mark.torch_alone
@pytest.mark.parametrize(
    ("schedule", "accumulation", "message"),
    [
        (keras.optimizers.schedules.CosineDecay(0.1, 8), 4, "after 8 of 32 steps.*multiply its"),
        (
            keras.optimizers.schedules.PolynomialDecay(0.1, 8),
            4,
            "PolynomialDecay ends after 8 of 32 steps, and its rate is 0.0001",
        ),
        (WarmupDecay(0.1, 6, warmup_steps=2), 4, "after 6 of 8 steps.*is 0 in.*pass it 8 steps"),
        (LRScheduler(lambda step, total, *_: 1 - step / total, total_steps=5), 4, "after 5 of 8"),
        (keras.optimizers.schedules.PolynomialDecay(0.1, 8), None, None),
        (keras.optimizers.schedules.ExponentialDecay(0.1, 8, 0.9), 4, None),
        (keras.optimizers.schedules.CosineDecay(0.1, 32), 4, None),
        (WarmupDecay(0.1, 8), 4, None),
        (WarmupDecay(0.1, 4, final_lr=0.01), 4, None),
    ],
)
def test_a_schedule_that_ends_before_the_training_is_named(schedule, accumulation, message, caplog):
    callbacks = [schedule] if isinstance(schedule, keras.callbacks.Callback) else []
    rate = 0.1 if callbacks else schedule
    optimizer = keras.optimizers.SGD(rate, gradient_accumulation_steps=accumulation)
    with caplog.at_level(logging.WARNING):
        train(build(), optimizer, 2, callbacks)
    assert len(caplog.messages) == (message is not None)
    assert re.search(message or "", "".join(caplog.messages))
