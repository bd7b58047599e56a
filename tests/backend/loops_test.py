import numpy as np
from keras import ops

from keras_deepseek.backend import current


def add_up(index, total, count):
    return total * 2 + ops.cast(index, "float32"), count + 1


def test_a_loop_hands_its_state_on():
    state = (ops.ones((2,)), ops.zeros((), "int32"))
    total, count = current().repeat(add_up, 3, state)
    np.testing.assert_allclose(ops.convert_to_numpy(total), [12.0, 12.0])
    assert int(count) == 3


def test_a_loop_of_no_runs_returns_the_state():
    state = (ops.ones((2,)), ops.zeros((), "int32"))
    total, count = current().repeat(add_up, 0, state)
    np.testing.assert_array_equal(ops.convert_to_numpy(total), [1.0, 1.0])
    assert int(count) == 0
