"""The functional graphs of models: integer products, layers by output, and safe cloning."""

from typing import Any

import keras

from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.keras_private.layers import (
    flatten_layers,
    functional_graph,
    is_container,
)
from keras_deepseek.errors import NotSupportedError


class CloneCheckedModel(keras.Model):
    """A Functional model that raises an error if `keras.models.clone_model` can't clone it."""

    def _run_through_graph(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_cloning(inputs, kwargs):
            return super()._run_through_graph(inputs, *args, **kwargs)
        for operation in _sharing_operations(self):
            if kwargs["operation_fn"](operation) is not operation:
                raise _refusal(self, f"{operation.name!r} shares weights with another layer")
        try:
            return super()._run_through_graph(inputs, *args, **kwargs)
        except NotImplementedError as error:  # Keras raises it for a layer without a config.
            raise _refusal(self, "one of its layers is not made by a config") from error


def _is_cloning(inputs: Any, arguments: dict[str, Any]) -> bool:
    """Returns True if `clone_model` is calling: only it passes symbols and a `call_fn`."""
    return "call_fn" in arguments and all(
        isinstance(leaf, keras.KerasTensor) for leaf in keras.tree.flatten(inputs)
    )


def _sharing_operations(model: keras.Model) -> list[keras.Operation]:
    operations = model.operations
    weights = [
        {id(weight) for weight in getattr(operation, "weights", ())} for operation in operations
    ]
    counts: dict[int, int] = {}
    for weight_ids in weights:
        for key in weight_ids:
            counts[key] = counts.get(key, 0) + 1
    return [
        operation
        for operation, weight_ids in zip(operations, weights, strict=True)
        if any(counts[key] > 1 for key in weight_ids)
    ]


def _refusal(model: keras.Model, reason: str) -> NotSupportedError:
    return NotSupportedError(
        f"`keras.models.clone_model` can't clone a {type(model).__name__} layer by layer: "
        f"{reason}. Make a copy by `type(model).from_config(model.get_config())`, and copy the "
        "weights by `copy.set_weights(model.get_weights())`."
    )


_IN_FLOAT32_ON_TENSORFLOW = {"Dot", "Einsum", "Inner", "Matmul", "Tensordot", "Vdot"}
"""The operations for which Keras casts integers to float32 on TensorFlow."""


def integer_products(model: keras.Layer) -> list[str]:
    """Returns the operations of a model's graph that multiply and add integers.

    An entry is, for example, `"Einsum 'einsum_1'"`. A model without a graph has none.
    """
    graph = functional_graph(model)
    products = []
    for operation in graph.operations if graph is not None else ():
        products += integer_products(operation)
        if type(operation).__name__ in _IN_FLOAT32_ON_TENSORFLOW and _takes_integers(operation):
            products.append(f"{type(operation).__name__} {operation.name!r}")
    return products


def _takes_integers(operation: keras.Operation) -> bool:
    tensors = [tensor for node in operation._inbound_nodes for tensor in node.input_tensors]
    return bool(tensors) and all("int" in keras.backend.standardize_dtype(x.dtype) for x in tensors)


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
