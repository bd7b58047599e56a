"""A pass that moves factors into the weights of products.

Keras's attention divides its queries by the root of their size.
"""

from typing import Any

import numpy as np

from keras_deepseek.deploy.onnx_passes.graph_view import GraphView, in_both_orders

_MATRIX = 2
_LEAST = float(np.finfo("float32").tiny)


def fold_scales(view: GraphView) -> int:
    """Replaces `MatMul(x, kernel) * number` by a product with a scaled kernel.

    A bias, `Reshape` or `Transpose` may stand in between. Only float32 is changed. A power of two
    changes no digit; another number rounds each weight once more.
    """
    return view.rewrite(_scale, "Mul", "Div")


def _scale(view: GraphView, node: Any) -> list[Any] | None:
    """Returns copies of the nodes up to the product, with the kernel and all biases scaled."""
    tensor, factor = _find_factor(view, node)
    chain = _find_chain(view, tensor) if factor is not None else None
    if factor is None or not chain:
        return None
    nodes: list[Any] = []
    for chain_node, index in reversed(chain):
        inputs = list(chain_node.input)
        if nodes:
            inputs[index] = nodes[-1].output[0]
        if chain_node.op_type in ("MatMul", "Add"):
            scaled = _add_scaled(view, inputs[1 - index], factor)
            if scaled is None:
                return None
            inputs[1 - index] = scaled
        nodes.append(view.node(chain_node.op_type, inputs, f"{chain_node.output[0]}__scaled"))
        nodes[-1].attribute.extend(chain_node.attribute)
    nodes[-1].output[0] = node.output[0]
    return nodes


def _find_factor(view: GraphView, node: Any) -> tuple[str, float | None]:
    if node.op_type == "Div":
        pairs, power = [tuple(node.input)], -1.0
    else:
        pairs, power = list(in_both_orders(node)), 1.0
    for tensor, name in pairs:
        number, array = view.scalar(name), view.constant(name)
        if number and array is not None and array.ndim <= len(view.shape(tensor) or ()):
            return tensor, number**power
    return "", None


def _find_chain(view: GraphView, name: str) -> list[tuple[Any, int]] | None:
    """Returns the nodes from a tensor back to the `MatMul` with a kernel.

    Each comes with the index of the input that was followed.
    """
    chain = []
    while view.num_users(name) == 1 and view.dtype(name) == view.onnx.TensorProto.FLOAT:
        node = view.producer(name, "MatMul", "Add", "Reshape", "Transpose")
        if node is None:
            return None
        index = 0
        if node.op_type == "Add" and view.constant(node.input[0]) is not None:
            index = 1
        chain.append((node, index))
        if node.op_type == "MatMul":
            kernel = view.constant(node.input[1])
            is_own = view.num_users(node.input[1]) == 1
            return chain if kernel is not None and kernel.ndim == _MATRIX and is_own else None
        name = node.input[index]
    return None


def _add_scaled(view: GraphView, name: str, factor: float) -> str | None:
    """Adds a scaled weight and returns its name; `None` if scaling overflows or loses precision."""
    array = view.constant(name)
    if array is None or array.dtype != np.float32:
        return None
    with np.errstate(over="ignore"):
        scaled = (array.astype("float64") * factor).astype("float32")
    if not np.isfinite(scaled).all() or (np.abs(scaled[array != 0]) < _LEAST).any():
        return None
    return view.add_weight(scaled, f"{name}__scaled")
