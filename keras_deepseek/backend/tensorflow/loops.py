"""Loops whose runs wait for each other, and what is done only on a condition."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_deepseek.backend.gradient_free import is_gradient_free
from keras_deepseek.backend.keras_private.keras_training import NestedScope, scoped_variables


def repeat(
    body: Callable[..., Sequence[Any]],
    times: Any,
    state: Sequence[Any],
    variables: Sequence[keras.Variable] = (),
) -> tuple[Any, ...]:
    """Returns the tensors that `state = body(index, *state)` makes, one run after the other."""
    number = len(state)
    # In a stateless scope it is not TensorFlow that knows what variables hold from run to run.
    carried = scoped_variables(variables)

    def run(index: Any, *values: Any) -> tuple[Any, ...]:
        if not carried:
            return index + 1, *body(index, *values)
        with NestedScope(zip(carried, values[number:], strict=True)) as scope:
            made = body(index, *values[:number])
        return index + 1, *made, *map(scope.get_current_value, carried)

    _, *final = tf.while_loop(
        lambda index, *_: index < times,
        run,
        (tf.constant(0), *state, *(variable.value for variable in carried)),
        # TensorFlow would start ten at once, and so hold what ten of them hold.
        parallel_iterations=1,
    )
    for variable, value in zip(carried, final[number:], strict=True):
        variable.assign(value)
    return tuple(final[:number])


def loops_over_blocks() -> bool:
    """Whether `stack` may be used, and is faster than one operation on all blocks at once."""
    return is_gradient_free() and not tf.config.list_physical_devices("GPU")


def stack(function: Callable[[Any], Any], count: Any, number: Any) -> Any:
    """Returns what `function(index)` makes for indices below `count`, zeros up to `number`."""
    made = tf.function(function, autograph=False).get_concrete_function(0).structured_outputs
    array = tf.TensorArray(made.dtype, number, element_shape=made.shape)
    _, array = tf.while_loop(
        lambda index, _: index < count,
        lambda index, array: (index + 1, array.write(index, function(index))),
        (tf.constant(0), array),
        parallel_iterations=1,
    )
    return array.stack()


def run_if(
    condition: Any, function: Callable[[], None], variables: Sequence[keras.Variable]
) -> None:
    """Runs a function that assigns variables, where a boolean scalar is true."""

    def run() -> tf.Tensor:
        function()
        return tf.constant(0)  # Of what it does nothing is returned, and the branches must agree.

    tf.cond(condition, run, lambda: tf.constant(0))
