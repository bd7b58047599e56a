"""Loops whose runs wait for each other, and what is done only on a condition."""

from collections.abc import Callable, Sequence
from typing import Any

import keras


def repeat(
    body: Callable[..., Sequence[Any]],
    times: Any,
    state: Sequence[Any],
    variables: Sequence[keras.Variable] = (),
) -> tuple[Any, ...]:
    """Returns the tensors that `state = body(index, *state)` makes, one run after the other."""
    for index in range(times):
        state = body(index, *state)
    return tuple(state)


def run_if(
    condition: Any, function: Callable[[], None], variables: Sequence[keras.Variable]
) -> None:
    """Runs a function that assigns variables, where a boolean scalar is true."""
    if condition:
        function()
