import sys

import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.callbacks import training_pace
from keras_deepseek.callbacks.training_pace import TrainingPace


class Clock:
    """A clock that a test sets."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def go(pace, clock, steps, seconds):
    for batch in steps:
        clock.now += seconds
        pace.after_step(batch)


def test_the_first_step_is_in_no_pace(clock):
    pace = TrainingPace(clock)
    assert pace.steps_per_second() is None
    go(pace, clock, [0], 60.0)
    assert pace.steps_per_second() is None
    go(pace, clock, range(1, 11), 0.5)
    assert pace.steps_per_second() == pytest.approx(2.0)
    assert pace.steps_per_second(of_epoch=True) == pytest.approx(2.0)


def test_the_pace_is_of_the_last_steps_and_that_of_the_epoch_of_all(clock):
    pace = TrainingPace(clock)
    go(pace, clock, range(101), 1.0)
    go(pace, clock, range(101, 201), 0.5)
    assert pace.steps_per_second() == pytest.approx(2.0)
    assert pace.steps_per_second(of_epoch=True) == pytest.approx(200 / 150)


def test_an_epoch_that_goes_on_in_its_middle_counts_its_own_steps(clock):
    pace = TrainingPace(clock)
    go(pace, clock, range(500, 511), 0.5)
    assert pace.done == 511
    assert pace.steps_per_second() == pytest.approx(2.0)


def test_several_steps_an_execution_are_several_steps(clock):
    pace = TrainingPace(clock)
    go(pace, clock, range(3, 43, 4), 1.0)
    assert pace.steps_per_second() == pytest.approx(4.0)


def test_a_step_that_is_told_of_late_changes_nothing(clock):
    pace = TrainingPace(clock)
    go(pace, clock, [0, 2, 1], 1.0)
    assert pace.done == 3
    assert pace.steps_per_second() == pytest.approx(2.0)


class Watching(keras.callbacks.Callback):
    """Follows a training with a clock in which each step takes a second."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.pace = TrainingPace(clock)
        self.rates = []

    def on_epoch_begin(self, epoch, logs=None):
        self.pace.begin_epoch()

    def on_train_batch_begin(self, batch, logs=None):
        self.pace.before_step(self._model, batch)
        self.rates.append(self.pace.learning_rate)

    def on_train_batch_end(self, batch, logs=None):
        self.clock.now += 1.0
        self.pace.after_step(batch)


def fit(*callbacks, optimizer="sgd", rows=10, model_class=None, **options):
    inputs = keras.Input((2,))
    model = (model_class or keras.Model)(inputs, keras.layers.Dense(1)(inputs))
    model.compile(optimizer, "mse")
    x, y = np.ones((rows, 2), "float32"), np.ones((rows, 1), "float32")
    model.fit(x, y, batch_size=4, verbose=0, callbacks=list(callbacks), **options)
    return model


def test_samples_are_counted_by_keras_itself(clock):
    watching = Watching(clock)
    fit(watching, rows=12, epochs=2)
    figures = watching.pace.figures(of_epoch=True)
    assert figures["steps_per_second"] == pytest.approx(1.0)
    assert figures["samples_per_second"] == pytest.approx(4.0)
    assert figures["learning_rate"] == pytest.approx(0.01)
    assert figures["process_memory_bytes"] > 2**20


def test_a_step_of_ones_own_that_counts_no_samples_has_a_pace_all_the_same(clock):
    class Own(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean(y_pred)

    watching = Watching(clock)
    model = fit(watching, rows=12, model_class=Own)
    model._loss_tracker = None
    watching.pace.before_step(model, 3)
    watching.clock.now += 9.0
    watching.pace.before_step(model, 3)
    assert "samples_per_second" not in watching.pace.figures()
    assert watching.pace.figures()["steps_per_second"] == pytest.approx(1.0)


def test_the_rate_of_a_schedule_is_that_of_the_coming_step(clock):
    schedule = keras.optimizers.schedules.PolynomialDecay(1.0, 4, end_learning_rate=0.0)
    watching = Watching(clock)
    fit(watching, rows=16, optimizer=keras.optimizers.SGD(schedule))
    assert watching.rates[0] is None
    np.testing.assert_allclose(watching.rates[1:], [0.75, 0.5, 0.25], rtol=1e-6)


def test_the_rate_of_an_optimizer_that_scales_the_loss_is_found(clock):
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.25))
    watching = Watching(clock)
    fit(watching, optimizer=optimizer)
    assert watching.pace.learning_rate == 0.25


def test_reading_brings_nothing_back_to_the_model(clock, monkeypatch):
    """On JAX that would cost the next step dearly."""
    if keras.backend.backend() != "jax":
        pytest.skip("Only Keras on JAX takes the variables away.")
    synced = []
    monkeypatch.setattr(
        keras.Model,
        "jax_state_sync",
        lambda self, sync=keras.Model.jax_state_sync: (synced.append(1), sync(self)),
    )
    fit(rows=16)
    without = len(synced)
    watching = Watching(clock)
    fit(watching, rows=16)
    assert watching.pace.samples_per_step == 4.0
    assert len(synced) == 2 * without


def read_memory(clock):
    pace = TrainingPace(clock)
    pace.before_step(fit(), 1)
    return pace.memory


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell it.")
def test_memory_that_is_filled_shows(clock, monkeypatch, tmp_path):
    old_bytes = read_memory(clock)["process_memory_bytes"]
    array = np.ones(2**24)  # 128 MiB
    # The system may take other pages of a large process away meanwhile: it took a tenth.
    assert read_memory(clock)["process_memory_bytes"] - old_bytes > 0.5 * array.nbytes
    monkeypatch.setattr(training_pace, "_STATUS", tmp_path / "nothing")  # As on macOS.
    assert read_memory(clock)["process_memory_bytes"] > 2**20


def test_an_accelerator_counts_where_there_is_one(clock, monkeypatch):
    devices = backend.current().devices
    monkeypatch.setattr(devices, "read_device_memory", lambda: {"in_use": 7, "peak": 9})
    assert read_memory(clock)["device_memory_bytes"] == 7
