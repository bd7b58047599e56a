import keras
import numpy as np
import pytest
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


def in_a_step(function, variables):
    """Runs a function as Keras's loop runs a step, and returns the values of variables."""
    if keras.backend.backend() != "jax":
        function()
        return [float(ops.convert_to_numpy(variable.value)) for variable in variables]
    import jax

    @jax.jit
    def run(values):
        with keras.StatelessScope(list(zip(variables, values, strict=True))) as scope:
            function()
        return [scope.get_current_value(variable) for variable in variables]

    return [float(value) for value in run([variable.value for variable in variables])]


def test_a_loop_assigns_variables():
    total, factor = keras.Variable(1.0), keras.Variable(2.0)

    def body(index, count):
        total.assign(total * factor)
        return (count + 1,)

    def run():
        (count,) = current().repeat(body, 3, (ops.zeros((), "int32"),), [total])
        total.assign_add(ops.cast(count, "float32"))

    assert in_a_step(run, [total, factor]) == [11.0, 2.0]


@pytest.mark.parametrize(("condition", "expected"), [(True, [3.0, 2.0]), (False, [1.0, 2.0])])
def test_what_is_done_on_a_condition_is_done_only_then(condition, expected):
    total, term = keras.Variable(1.0), keras.Variable(2.0)

    def add():
        total.assign_add(term)

    def run():
        current().run_if(ops.convert_to_tensor(condition), add, [total])

    assert in_a_step(run, [total, term]) == expected


def test_what_is_not_counted_is_stacked_as_zeros():
    def run(state, count):
        rows = ops.ones((2, 3))
        made = current().stack(lambda index: rows * (ops.cast(index, "float32") + 1), count, 4)
        return made, state

    stacked, _ = current().compile_with_state(run, [])(None, np.int32(3))
    expected = np.array([1, 2, 3, 0], "float32")[:, None, None] * np.ones((4, 2, 3), "float32")
    np.testing.assert_array_equal(ops.convert_to_numpy(stacked), expected)


def test_blocks_are_looped_over_only_where_no_gradient_is_asked_for():
    seen = []

    def run(state):
        seen.append(current().loops_over_blocks())
        return ops.ones(()), state

    current().compile_with_state(run, [])(None)
    assert seen[-1] == (keras.backend.backend() != "torch")
    assert not current().loops_over_blocks()
