import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.callbacks import ThroughputMeter
from keras_deepseek.errors import InvalidInputError


class Clock:
    """A second goes by with each step."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Ticking(keras.callbacks.Callback):
    def __init__(self, clock):
        super().__init__()
        self.clock, self.seen = clock, []

    def on_train_batch_begin(self, batch, logs=None):
        self.clock.now += 1.0

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(dict(logs))


def fit(layers=None, length=(), **options):
    clock = Clock()
    ticking = Ticking(clock)
    model = keras.Sequential(layers or [keras.Input((4,)), keras.layers.Dense(5)])
    model.compile("sgd", "mse")
    meter = ThroughputMeter(clock=clock, **options)
    x, y = np.ones((12, *length, 4), "float32"), np.ones((12, *length, 5), "float32")
    history = model.fit(x, y, 3, 2, verbose=0, callbacks=[meter, ticking])
    return history.history, ticking.seen


def test_steps_and_the_epoch_have_their_figures():
    history, step_logs = fit(tokens_per_sample=10)
    assert history["steps_per_second"] == [pytest.approx(1.0)] * 2
    assert history["samples_per_second"] == [pytest.approx(3.0)] * 2
    assert history["tokens_per_second"] == [pytest.approx(30.0)] * 2
    assert history["learning_rate"] == [pytest.approx(0.01)] * 2
    assert history["process_memory_bytes"][0] > 2**20
    assert step_logs[3]["tokens_per_second"] == pytest.approx(30.0)
    assert "loss" in step_logs[3]


def test_the_use_of_the_device_is_by_the_operations_counted(caplog):
    caplog.set_level("INFO", "keras_deepseek")
    flops = 3 * 2 * 4 * 5
    history, _ = fit(peak_flops=1000 * flops)
    assert history["model_flops_utilization"] == [pytest.approx(3.0 / 1000)] * 2
    assert "120 operations, counted" in caplog.text


def test_or_by_those_given():
    history, _ = fit(flops_per_sample=50, peak_flops=300)
    assert history["model_flops_utilization"] == [pytest.approx(0.5)] * 2


def test_or_estimated(caplog):
    caplog.set_level("INFO", "keras_deepseek")
    layers = [keras.Input((None, 4)), keras.layers.Dense(5, use_bias=False)]
    history, _ = fit(layers, (3,), tokens_per_sample=2, peak_flops=1000 * 6 * 20 * 2)
    assert history["model_flops_utilization"] == [pytest.approx(3.0 / 1000)] * 2
    assert "estimated as 6 * parameters * tokens" in caplog.text


def test_a_model_that_its_first_step_builds():
    history, _ = fit([keras.layers.Dense(5)], peak_flops=1000 * 120)
    assert history["model_flops_utilization"] == [pytest.approx(3.0 / 1000)] * 2


def test_the_peak_of_a_well_known_accelerator(monkeypatch):
    name = "NVIDIA H100 80GB HBM3"
    monkeypatch.setattr(backend.current().devices, "read_device_name", lambda: name)
    history, _ = fit(flops_per_sample=989e12 / 30)
    assert history["model_flops_utilization"] == [pytest.approx(0.1)] * 2


def test_a_cpu_has_no_peak():
    if backend.current().devices.read_device_name() is not None:
        pytest.skip("It has an accelerator.")
    assert "model_flops_utilization" not in fit()[0]


@pytest.mark.parametrize("name", ["tokens_per_sample", "flops_per_sample", "peak_flops"])
def test_what_is_not_above_zero_is_refused(name):
    with pytest.raises(InvalidInputError, match=f"`{name}` must be a finite number above 0"):
        ThroughputMeter(**{name: 0})
