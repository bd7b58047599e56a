"""Loops of a model that go on for as long as its data demand."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.backend.keras_private.replaced_functions import replaced_functions


@contextlib.contextmanager
def unlimited_loops(model: keras.Model) -> Iterator[list[Any]]:
    """Context manager that yields a list of a model's loops without a limit, as calls run them.

    They are those of `ops.while_loop` without `maximum_iterations`.
    """
    layers = flatten_layers(model)
    operations = [operation for layer in layers for operation in getattr(layer, "operations", ())]
    loops: list[Any] = [
        operation
        for operation in operations
        if type(operation).__name__ == "WhileLoop" and operation.maximum_iterations is None
    ]

    def while_loop(
        original: Callable[..., Any],
        cond: Any,
        body: Any,
        loop_vars: Any,
        maximum_iterations: Any = None,
    ) -> Any:
        if maximum_iterations is None:
            loops.append(cond)
        return original(cond, body, loop_vars, maximum_iterations)

    with replaced_functions(while_loop=while_loop):
        yield loops
