"""Loops whose runs wait for each other, and what is done only on a condition."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import torch


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


def loops_over_blocks() -> bool:
    """Whether `stack` may be used, and is faster than one operation on all blocks at once."""
    return False


def stack(function: Callable[[Any], Any], count: Any, number: Any) -> Any:
    """Returns what `function(index)` makes for indices below `count`, zeros up to `number`."""
    made = [function(index) for index in range(int(count))]
    return torch.stack(made + [torch.zeros_like(made[0])] * (number - len(made)))


def run_if(
    condition: Any, function: Callable[[], None], variables: Sequence[keras.Variable]
) -> None:
    """Runs a function that assigns variables, where a boolean scalar is true."""
    if condition:
        function()
