"""Finds the layers that each output of a model depends on."""

import keras

from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.keras_private.layers import (
    flatten_layers,
    functional_graph,
    is_container,
)


def layers_by_output(model: NamedModel) -> dict[str, list[keras.Layer]]:
    """Returns the layers that each model output may depend on, including inner layers.

    In a graph these are the layers on a path from an input to the output. In a model with its own
    `call`, each output counts for all layers.
    """
    names = [spec.name for spec in model.signature.outputs]
    if not is_container(model.model) or functional_graph(model.model) is None:
        return {name: flatten_layers(model.model) for name in names}
    tensors = model.model.outputs
    return {name: _layers_before(tensor) for name, tensor in zip(names, tensors, strict=True)}


def _layers_before(tensor: keras.KerasTensor) -> list[keras.Layer]:
    """Returns the layers on the paths to a symbolic tensor."""
    layers: dict[int, keras.Layer] = {}
    visited: set[tuple[int, int]] = set()
    waiting = [tensor]
    while waiting:
        operation, node_index, _ = waiting.pop()._keras_history
        if (id(operation), node_index) in visited:
            continue
        visited.add((id(operation), node_index))
        if isinstance(operation, keras.Layer):
            layers |= {id(layer): layer for layer in flatten_layers(operation)}
        waiting.extend(operation._inbound_nodes[node_index].input_tensors)
    return list(layers.values())
