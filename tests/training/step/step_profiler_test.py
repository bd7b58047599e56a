import contextlib

import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.backend.profiling.step_trace import WINDOW, Event, Owner
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.step.step_profiler import STEPS, StepProfiler


@pytest.fixture
def model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="head")], name="all")
    model.compile("sgd", "mse")
    return model


@pytest.fixture
def clock(monkeypatch):
    """Makes the backend trace a window of ten seconds for each that is opened."""
    opened = []

    @contextlib.contextmanager
    def trace_steps(model, lines):
        yield
        windows = [Event(20 * i, 20 * i + 10, WINDOW, None) for i in range(len(opened))]
        lines += [windows, [Event(2, 8, "dot", Owner("forward", "head"))]]

    def annotate(name):
        opened.append(name)
        return contextlib.nullcontext()

    step = backend.current().step
    monkeypatch.setattr(step, "trace_steps", trace_steps)
    monkeypatch.setattr(step, "annotate", annotate)
    return opened


def call(profiler, count):
    for _ in range(count):
        profiler.before_call()
        profiler.after_call({"loss": np.float32(1)})


@pytest.mark.torch_alone
def test_steps_are_counted_from_the_end_of_one(model, clock, tmp_path):
    profiler, profiles = StepProfiler(model), []
    call(profiler, 3)
    profiler.request(tmp_path / "trace.json.gz", profiles.append, skip=2)
    with pytest.raises(InvalidInputError, match="already"):
        profiler.request(tmp_path / "trace.json.gz", profiles.append)
    call(profiler, 1)
    assert clock == []
    call(profiler, 1)
    assert len(clock) == 1
    call(profiler, STEPS - 1)
    assert profiles == []
    call(profiler, 1)
    (profile,) = profiles
    assert profile.parts["forward"] * STEPS == pytest.approx(6)
    assert profile.parts["idle"] * STEPS == pytest.approx(4)
    assert (profile.layers, profile.model) == ({"head": [pytest.approx(6 / STEPS), 0.0]}, "all")
    assert (tmp_path / "trace.json.gz").exists()
    profiler.request(tmp_path / "trace.json.gz", profiles.append)  # Another one may follow.


@pytest.mark.torch_alone
def test_the_end_of_an_epoch_is_not_counted(model, clock, tmp_path):
    profiler, profiles = StepProfiler(model), []
    profiler.request(tmp_path / "trace.json.gz", profiles.append)
    call(profiler, 2)
    profiler.on_test_begin()
    profiler.on_epoch_end(0)
    call(profiler, 1)
    assert len(clock) == 2
    call(profiler, STEPS)
    assert profiles[0].step_seconds * STEPS == pytest.approx(20)


@pytest.mark.torch_alone
def test_a_profiler_that_fails_ends_no_training(model, monkeypatch, tmp_path):
    def trace_steps(model, lines):
        raise RuntimeError("Only one profile may be run at a time.")

    monkeypatch.setattr(backend.current().step, "trace_steps", trace_steps)
    profiler, errors = StepProfiler(model), []
    profiler.request(tmp_path / "trace.json.gz", errors.append)
    call(profiler, STEPS + 2)
    (error,) = errors
    assert "at a time" in str(error)


@pytest.mark.torch_alone
def test_a_request_ends_with_the_training(model, clock, tmp_path):
    profiler, profiles = StepProfiler(model), []
    profiler.request(tmp_path / "trace.json.gz", profiles.append)
    call(profiler, 3)
    profiler.cancel()
    call(profiler, STEPS)
    assert profiles == []
    assert not (tmp_path / "trace.json.gz").exists()
