"""Loops whose runs wait for each other."""

from collections.abc import Callable, Sequence
from typing import Any


def repeat(body: Callable[..., Sequence[Any]], times: Any, state: Sequence[Any]) -> tuple[Any, ...]:
    """Returns the tensors that `state = body(index, *state)` makes, one run after the other."""
    for index in range(times):
        state = body(index, *state)
    return tuple(state)
