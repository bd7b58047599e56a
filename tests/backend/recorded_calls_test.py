import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.backend import current


def test_nothing_is_recorded_outside_of_a_step_that_is():
    assert not current().can_run_apart()
    doubled = current().run_apart(lambda x: x * 2, ops.ones((2,)))
    np.testing.assert_array_equal(ops.convert_to_numpy(doubled), [2, 2])


def test_what_a_recording_runs_apart_may_go_by_numbers():
    variable, ways, offers = keras.Variable(2.0), [], []

    def choose(x, factor):
        ways.append(bool(current().can_read_shapes(x)))
        return x * factor if float(ops.sum(x)) > 0 else x - factor

    def function(state, x):
        offers.append(current().can_run_apart())
        if not offers[-1]:
            return ops.where(ops.sum(x) > 0, x * variable, x - variable), state
        return current().run_apart(choose, x, ops.convert_to_tensor(variable)), state

    step, state = current().compile_with_state(function, [variable]), {"kept": ops.zeros((1,))}
    for number in range(20):
        if number == 17:
            variable.assign(3.0)
        x = np.full((2,), (-1.0) ** number, "float32")
        outputs, state = step(state, x)
        factor = 3.0 if number >= 17 else 2.0
        expected = x * factor if number % 2 == 0 else x - factor
        np.testing.assert_array_equal(ops.convert_to_numpy(outputs), expected)
    assert any(offers) == (keras.backend.backend() == "torch")
    assert all(ways)  # Nothing is recorded within.


def test_a_call_that_is_run_apart_from_its_recording_says_so():
    if keras.backend.backend() != "torch":
        pytest.skip("Only PyTorch has recordings.")
    from keras_deepseek.backend.torch.recorded_calls import _operation

    with pytest.raises(RuntimeError, match="outside of the recording"):
        _operation()(0, [])
