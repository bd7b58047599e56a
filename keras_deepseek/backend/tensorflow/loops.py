"""Loops whose runs wait for each other, and what is done only on a condition."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf


def repeat(
    body: Callable[..., Sequence[Any]],
    times: Any,
    state: Sequence[Any],
    variables: Sequence[keras.Variable] = (),
) -> tuple[Any, ...]:
    """Returns the tensors that `state = body(index, *state)` makes, one run after the other."""
    _, *final = tf.while_loop(
        lambda index, *_: index < times,
        lambda index, *state: (index + 1, *body(index, *state)),
        (tf.constant(0), *state),
        # TensorFlow would start ten at once, and so hold what ten of them hold.
        parallel_iterations=1,
    )
    return tuple(final)


def run_if(
    condition: Any, function: Callable[[], None], variables: Sequence[keras.Variable]
) -> None:
    """Runs a function that assigns variables, where a boolean scalar is true."""

    def run() -> tf.Tensor:
        function()
        return tf.constant(0)  # Of what it does nothing is returned, and the branches must agree.

    tf.cond(condition, run, lambda: tf.constant(0))
