"""Functions that go on from a state, compiled, and the memory that such a state has."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import keras
import numpy as np
import torch
from keras import ops

_OWNS_STATE: ContextVar[bool] = ContextVar("owns_state", default=False)
"""Whether the tensors of a cache belong to a function that may write into them."""


def compile_with_state(
    function: Callable[..., tuple[Any, Any]], variables: Sequence[keras.Variable]
) -> Callable[..., tuple[Any, Any]]:
    """Returns `function(state, *inputs)`, which makes outputs and the next state, compiled."""

    def step(state: Any, *inputs: Any) -> tuple[Any, Any]:
        token = _OWNS_STATE.set(True)
        try:
            with torch.inference_mode():
                return function(state, *keras.tree.map_structure(_make_tensor, inputs))
        finally:
            _OWNS_STATE.reset(token)

    return step


def _make_tensor(value: Any) -> Any:
    return ops.convert_to_tensor(value) if isinstance(value, np.ndarray) else value


def write_slots(tensor: Any, start: Any, update: Any) -> Any:
    """Returns a tensor `(batch_size, slots, ...)` with an update in its slots from `start` on."""
    if _OWNS_STATE.get() and isinstance(start, int):
        tensor[:, start : start + update.shape[1]] = update
        return tensor
    return ops.slice_update(tensor, [0, start, *[0] * (len(update.shape) - 2)], update)
