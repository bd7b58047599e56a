import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.backend import current

IS_TORCH = keras.backend.backend() == "torch"


def make_step(inner):
    """Returns a step that calls a function of its state and inputs, and how often it was run."""
    model, runs = keras.Model(), []
    variable = model.add_weight(shape=(), initializer=keras.initializers.Constant(2.0))
    model.built = True

    def function(state, inputs):
        runs.append(1)
        total = ops.zeros((4,)) if state is None else state
        factor = ops.convert_to_tensor(variable)
        total = total + current().inference.run_unrecorded(inner, inputs * factor, factor)
        return {"total": total + 1.0}, total

    return current().inference.compile_with_state(function, [variable], model), variable, runs


def test_it_is_the_function():
    numbers = ops.convert_to_tensor([1.0, 2.0])
    difference = current().inference.run_unrecorded(lambda x, y: x - y, numbers, numbers / 2)
    np.testing.assert_array_equal(ops.convert_to_numpy(difference), [0.5, 1.0])


def test_a_recorded_step_calls_it_anew_each_time():
    calls = []

    def inner(values, factor):
        calls.append(1)
        compute = current().compute
        if compute.can_read_shapes(values) and compute.read_array(values)[0] > 10:
            return -values * factor
        return values * factor

    step, variable, runs = make_step(inner)
    state, expected = None, np.zeros(4)
    for number in range(24):
        if number == 20:
            variable.assign(3.0)
        inputs = np.full(4, number, "float32")
        outputs, state = step(state, inputs)
        factor = 3.0 if number >= 20 else 2.0
        is_negative = IS_TORCH and number * factor > 10
        expected = expected + (-1 if is_negative else 1) * inputs * factor**2
        np.testing.assert_allclose(ops.convert_to_numpy(outputs["total"]), expected + 1)
    assert len(runs) < 24
    if IS_TORCH:
        assert len(calls) > 24  # More, to record it and to compare.


def test_its_error_is_that_of_the_step():
    if not IS_TORCH:
        return  # The others have compiled it by then.

    def inner(values, factor):
        if float(values[0]) > 40:
            raise KeyError("too large")
        return values * factor

    step, *_ = make_step(inner)
    state = None
    for number in range(20):
        _, state = step(state, np.full(4, number, "float32"))
    with pytest.raises(KeyError, match="too large"):
        step(state, np.full(4, 30, "float32"))
