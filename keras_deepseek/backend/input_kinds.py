"""What the numbers of a model's inputs are like, as the layers that they reach expect them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_internals import flatten_layers, functional_graph


@dataclass(frozen=True)
class InputKind:
    """What one input is to hold.

    Args:
        vocabulary: integer. The fewest rows of an `Embedding` that it is looked up in; `None` where
            it reaches none. Defaults to `None`.
        scale: The mean and the standard deviation, which can be broadcast to a batch, of what a
            `Normalization` or `Rescaling` that it reaches at once makes a standard one of. Defaults
            to `None`.
        mask_value: float. What a `Masking` that it reaches at once takes for padding. Defaults to
            `None`.
    """

    vocabulary: int | None = None
    scale: tuple[Array, Array] | None = None
    mask_value: float | None = None


def input_kinds(model: keras.Layer, num_inputs: int) -> list[InputKind]:
    """Returns for each flat input what it is to hold.

    An input is followed through the graph of a Functional model and of those inside it. Where a
    layer of another kind holds embeddings, each input that reaches it counts for all of them.

    Args:
        model: `keras.Model`, or a layer.
        num_inputs: integer. The number of its flat inputs.

    Returns:
        A list in the order of the flat inputs. Of a model that is not Functional, all are alike.
    """
    graph = functional_graph(model)
    if graph is None:
        rows = (x.input_dim for x in flatten_layers(model) if isinstance(x, keras.layers.Embedding))
        mask_value = model.mask_value if isinstance(model, keras.layers.Masking) else None
        return [InputKind(min(rows, default=None), _scale(model), mask_value)] * num_inputs
    kinds = [InputKind()] * num_inputs
    places = {id(tensor): index for index, tensor in enumerate(graph.inputs)}
    for tensor, found in _taken_by_layers(graph):
        if found.vocabulary is not None:
            for index in _sources(tensor, places):
                fewest = min(found.vocabulary, kinds[index].vocabulary or found.vocabulary)
                kinds[index] = replace(kinds[index], vocabulary=fewest)
        if found.scale is not None and id(tensor) in places:
            index = places[id(tensor)]
            kinds[index] = replace(kinds[index], scale=found.scale)
        if found.mask_value is not None and id(tensor) in places:
            index = places[id(tensor)]
            kinds[index] = replace(kinds[index], mask_value=found.mask_value)
    return kinds


def _taken_by_layers(graph: Any) -> Iterator[tuple[keras.KerasTensor, InputKind]]:
    """Yields the tensors that the layers of a graph take, each with what it is to hold."""
    for layer in graph.operations:
        for node in layer._inbound_nodes if isinstance(layer, keras.Layer) else ():
            found = input_kinds(layer, len(node.input_tensors))
            yield from zip(node.input_tensors, found, strict=True)


def _scale(layer: keras.Layer) -> tuple[Array, Array] | None:
    """Returns the mean and the deviation of what a layer makes a standard normal one of."""
    if isinstance(layer, keras.layers.Normalization) and not layer.invert:
        mean, deviation = (
            np.asarray(keras.ops.convert_to_numpy(each), "float64")
            for each in (layer.mean, keras.ops.sqrt(layer.variance))
        )
        return mean, np.maximum(deviation, keras.backend.epsilon())
    if isinstance(layer, keras.layers.Rescaling):
        scale, offset = (np.asarray(each, "float64") for each in (layer.scale, layer.offset))
        return (-offset / scale, 1 / np.abs(scale)) if np.all(scale != 0) else None
    return None


def _sources(tensor: keras.KerasTensor, places: dict[int, int]) -> Iterator[int]:
    """Yields the inputs that a tensor is made of, by their places."""
    seen: set[int] = set()
    waiting = [tensor]
    while waiting:
        given = waiting.pop()
        if id(given) in seen:
            continue
        seen.add(id(given))
        if id(given) in places:
            yield places[id(given)]
        else:
            operation, node_index, _ = given._keras_history
            waiting.extend(operation._inbound_nodes[node_index].input_tensors)
