"""A fusion pass for GELU, into ONNX's `Gelu` operator of opset 20.

Below it, GELU is written in the form that onnxruntime recognizes and fuses.
"""

from typing import Any

import numpy as np

from keras_deepseek.deploy.onnx_passes.graph_view import GraphView, in_both_orders

_FIRST_OPSET = 20
_CUBIC = 0.044715
_CUBE, _HALF = 3.0, 0.5
_ROOT_OF_2 = float(np.sqrt(2.0))
_ROOT_OF_2_BY_PI = float(np.sqrt(2.0 / np.pi))


def fuse_gelu(view: GraphView) -> int:
    """Replaces exact GELU, `x / 2 * (1 + erf(x / sqrt(2)))`, and its `tanh` approximation."""
    return view.rewrite(_fuse, "Mul")


def _fuse(view: GraphView, last: Any) -> list[Any] | None:
    gelu = _find(view, last)
    if gelu is None:
        return None
    x, approximate, nodes = gelu
    return _write(view, last, x, approximate) if view.are_only_used_within(nodes, last) else None


def _find(view: GraphView, last: Any) -> tuple[str, str, list[Any]] | None:
    """Returns the GELU that ends in a product: input, kind of approximation, and nodes."""
    factors, nodes = _factors(view, last)
    halves = [name for name in factors if view.scalar(name) == _HALF]
    sums = [name for name in factors if view.producer(name, "Add", "Sub") is not None]
    if len(factors) != 3 or len(halves) != 1:  # noqa: PLR2004 - x, a half, and the sum
        return None
    for total in sums:
        (x,) = [name for name in factors if name not in (total, halves[0])] or ("",)
        node = view.producer(total, "Add", "Sub")
        for function, sign in _beside_one(view, node):
            erf, tanh = view.producer(function, "Erf"), view.producer(function, "Tanh")
            if erf is not None:
                inner = _is_product(view, erf.input[0], x, sign / _ROOT_OF_2)
                if inner is not None:
                    return x, "none", [*nodes, node, erf, *inner]
            if tanh is not None and sign > 0:
                inner = _is_cubic(view, tanh.input[0], x)
                if inner is not None:
                    return x, "tanh", [*nodes, node, tanh, *inner]
    return None


def _factors(view: GraphView, last: Any) -> tuple[list[str], list[Any]]:
    """Returns the three factors of a product `a * (b * c)`, and the inner product's node."""
    for first, second in in_both_orders(last):
        inner = view.producer(first, "Mul")
        if inner is not None and view.scalar(second) != _HALF:
            return [*inner.input, second], [inner]
    for first, second in in_both_orders(last):
        inner = view.producer(first, "Mul")
        if inner is not None:
            return [*inner.input, second], [inner]
    return [], []


def _beside_one(view: GraphView, node: Any) -> list[tuple[str, float]]:
    """Returns the tensors that a node adds to 1 or subtracts from 1, each with its sign."""
    if node.op_type == "Sub":
        return [(node.input[1], -1.0)] if view.scalar(node.input[0]) == 1.0 else []
    return [(name, 1.0) for name, number in in_both_orders(node) if view.scalar(number) == 1.0]


def _is_product(view: GraphView, name: str, x: str, factor: float) -> list[Any] | None:
    """Returns the nodes that multiply `x` by a given factor; `None` if `name` is not that."""
    node = view.producer(name, "Mul", "Div", "Neg")
    if node is None:
        return None
    if node.op_type == "Neg":
        nodes = _is_product(view, node.input[0], x, -factor)
        return None if nodes is None else [node, *nodes]
    if node.op_type == "Div":
        return [node] if node.input[0] == x and view.is_number(node.input[1], 1 / factor) else None
    for tensor, number in in_both_orders(node):
        if not view.is_number(number, factor) and not view.is_number(number, -factor):
            continue
        if tensor == x and view.is_number(number, factor):
            return [node]
        negative = view.producer(tensor, "Neg")
        if negative is not None and negative.input[0] == x and view.is_number(number, -factor):
            return [node, negative]
    return None


def _is_cubic(view: GraphView, name: str, x: str) -> list[Any] | None:
    """Returns the nodes of `sqrt(2 / pi) * (x + 0.044715 * x ** 3)`; `None` if it is not that."""
    node = view.producer(name, "Mul")
    for tensor, number in in_both_orders(node) if node is not None else ():
        total = view.producer(tensor, "Add")
        if total is None or not view.is_number(number, _ROOT_OF_2_BY_PI):
            continue
        for first, second in in_both_orders(total):
            product = view.producer(second, "Mul")
            if first != x or product is None:
                continue
            for cube, factor in in_both_orders(product):
                cubed = _is_cube(view, cube, x)
                if cubed is not None and view.is_number(factor, _CUBIC):
                    return [node, total, product, *cubed]
    return None


def _is_cube(view: GraphView, name: str, x: str) -> list[Any] | None:
    node = view.producer(name, "Pow", "Mul")
    if node is None:
        return None
    if node.op_type == "Pow":
        return [node] if node.input[0] == x and view.scalar(node.input[1]) == _CUBE else None
    for tensor, square in in_both_orders(node):
        inner = view.producer(square, "Mul", "Pow")
        if tensor != x or inner is None or inner.input[0] != x:
            continue
        second = inner.input[1]
        if second == x if inner.op_type == "Mul" else view.scalar(second) == 2.0:  # noqa: PLR2004
            return [node, inner]
    return None


def _write(view: GraphView, last: Any, x: str, approximate: str) -> list[Any]:
    """Makes `Gelu`, or below its opset the operators for it in one form that runtimes know."""
    if view.opset >= _FIRST_OPSET:
        return [view.node("Gelu", [x], last.output[0], approximate=approximate)]
    types = view.onnx.helper.tensor_dtype_to_np_dtype(view.dtype(x) or 1)

    def number(value: float, name: str) -> str:
        return view.add_weight(np.array(value, types), f"gelu_{name}")

    def step(op_type: str, inputs: list[str], name: str) -> str:
        nodes.append(view.node(op_type, inputs, f"{last.output[0]}__{name}"))
        return str(nodes[-1].output[0])

    nodes: list[Any] = []
    if approximate == "none":
        inner = step("Div", [x, number(_ROOT_OF_2, "root")], "divided")
        inner = step("Erf", [inner], "erf")
    else:
        inner = step("Pow", [x, number(_CUBE, "power")], "cube")
        inner = step("Mul", [number(_CUBIC, "cubic"), inner], "cubic")
        inner = step("Add", [x, inner], "inner")
        inner = step("Mul", [number(_ROOT_OF_2_BY_PI, "factor"), inner], "scaled")
        inner = step("Tanh", [inner], "tanh")
    inner = step("Add", [inner, number(1.0, "one")], "sum")
    if approximate == "none":
        inner = step("Mul", [x, inner], "product")
        nodes.append(view.node("Mul", [inner, number(_HALF, "half")], last.output[0]))
    else:
        half = step("Mul", [x, number(_HALF, "half")], "half")
        nodes.append(view.node("Mul", [half, inner], last.output[0]))
    return nodes
