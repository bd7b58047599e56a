"""Detection of integer products in a model, some of which TensorFlow computes in float32."""

import keras

from keras_deepseek.backend.keras_private.layers import functional_graph

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
    """Returns True if all inputs of an operation are integers."""
    tensors = [tensor for node in operation._inbound_nodes for tensor in node.input_tensors]
    return bool(tensors) and all("int" in keras.backend.standardize_dtype(x.dtype) for x in tensors)
