"""What the floats of a model's inputs are like, as its first layers expect them."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_internals import functional_graph

Scale = tuple[Array, Array]
"""A mean and a standard deviation, which can be broadcast to a batch of the input."""


def input_scales(model: keras.Model, num_inputs: int) -> list[Scale | None]:
    """Returns for each flat input what `Normalization` or `Rescaling` makes a standard one of.

    Args:
        model: `keras.Model`.
        num_inputs: integer. The number of its flat inputs.

    Returns:
        A list of `(mean, deviation)` in the order of the flat inputs; `None` for an input that
        reaches no such layer at once.
    """
    graph = functional_graph(model)
    scales: list[Scale | None] = [None] * num_inputs
    if graph is None:
        return scales
    places = {id(tensor): index for index, tensor in enumerate(graph.inputs)}
    for operation in graph.operations:
        for tensor, scale in _expected(operation):
            if id(tensor) in places and scale is not None:
                scales[places[id(tensor)]] = scale
    return scales


def _expected(operation: keras.Operation) -> Iterator[tuple[Any, Scale | None]]:
    """Yields the tensors that an operation takes, each with what it expects."""
    for node in operation._inbound_nodes:
        if isinstance(operation, keras.layers.Normalization) and not operation.invert:
            mean, deviation = (
                np.asarray(keras.ops.convert_to_numpy(each), "float64")
                for each in (operation.mean, keras.ops.sqrt(operation.variance))
            )
            yield node.input_tensors[0], (mean, np.maximum(deviation, keras.backend.epsilon()))
        elif isinstance(operation, keras.layers.Rescaling):
            scale = np.asarray(operation.scale, "float64")
            if np.all(scale != 0):
                offset = np.asarray(operation.offset, "float64")
                yield node.input_tensors[0], (-offset / scale, 1 / np.abs(scale))
        elif isinstance(operation, keras.Model):
            yield from zip(
                node.input_tensors, input_scales(operation, len(node.input_tensors)), strict=True
            )
