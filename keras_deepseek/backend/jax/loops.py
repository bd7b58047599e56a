"""Loops whose runs wait for each other."""

from collections.abc import Callable, Sequence
from typing import Any

import jax


def repeat(body: Callable[..., Sequence[Any]], times: Any, state: Sequence[Any]) -> tuple[Any, ...]:
    """Returns the tensors that `state = body(index, *state)` makes, one run after the other."""
    final: tuple[Any, ...] = jax.lax.fori_loop(
        0, times, lambda index, state: tuple(body(index, *state)), tuple(state)
    )
    return final
