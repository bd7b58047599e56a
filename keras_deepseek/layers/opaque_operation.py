"""Calls of backend functions on `keras.KerasTensor`s."""

from collections.abc import Callable
from typing import Any

import keras


def call_opaque(function: Callable[..., Any], *tensors: Any) -> Any:
    """Returns `function(*tensors)`; for `keras.KerasTensor`s, the outputs of one graph operation.

    Use it for a function of the backend, which `keras.ops` lacks. Keras infers the shapes of the
    outputs by a call without data.
    """
    if any(isinstance(tensor, keras.KerasTensor) for tensor in tensors):
        return _OpaqueOperation(function)(*tensors)
    return function(*tensors)


class _OpaqueOperation(keras.Operation):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function

    def call(self, *tensors: Any) -> Any:
        return self._function(*tensors)
