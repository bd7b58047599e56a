"""Loops whose runs wait for each other."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def repeat(body: Callable[..., Sequence[Any]], times: Any, state: Sequence[Any]) -> tuple[Any, ...]:
    """Returns the tensors that `state = body(index, *state)` makes, one run after the other."""
    _, *final = tf.while_loop(
        lambda index, *_: index < times,
        lambda index, *state: (index + 1, *body(index, *state)),
        (tf.constant(0), *state),
        # TensorFlow would start ten at once, and so hold what ten of them hold.
        parallel_iterations=1,
    )
    return tuple(final)
