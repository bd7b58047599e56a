"""Passes for numbers that onnxruntime computes otherwise than Keras: NaN in `LSTM`, large integers.

onnxruntime's `LSTM` limits the sums before its activations, which turns NaN into a number. From
the step of a NaN on, all values of a row are NaN in Keras and in ONNX's definition.

onnxruntime computes integer sums, products and powers in float64. Values beyond the bounds of the
type are cut off there, and digits beyond 2**53 are lost. Its `Add`, `Mul` and `Cast` wrap around.
"""

from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.export.tf2onnx_integers import BOOL, INT32, INT64, SHORT_INTEGERS
from keras_deepseek.deploy.onnx_passes.graph_view import (
    GraphView,
    all_nodes,
    attribute,
    import_package,
    infer_graph,
    inner_graphs,
    make_loop_body,
)

_OPERATORS = ("ReduceSum", "ReduceProd", "Pow")
_SIZE_SOURCES = ("Shape", "Size", "Constant")
_SIZE_OPERATORS = ("Cast", "Concat", "Gather", "Identity", "Mul", "Slice", "Squeeze", "Unsqueeze")
_NUMPY = {INT32: "int32", INT64: "int64"}
_HIGHEST_POWER = 64


def keep_nan(view: GraphView) -> int:
    """Makes the outputs of each `LSTM` NaN from a NaN of its input on; returns the number of LSTMs.

    Adds 0 or NaN by row and step, which costs a sum over the input.
    """
    return view.rewrite(_add_nan, "LSTM")


def _add_nan(view: GraphView, node: Any) -> list[Any] | None:
    """Returns an `LSTM` node, and nodes that add 0 or NaN to its outputs; `None` if it can't."""
    x, name = node.input[0], f"{''.join(node.output)}__nan"
    dtype = view.dtype(x)
    if not dtype or attribute(node, "layout", 0):
        return None
    number = view.onnx.helper.tensor_dtype_to_np_dtype(dtype)
    nodes: list[Any] = []

    def add(op_type: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(view.node(op_type, [*inputs], f"{name}_{len(nodes)}", **attributes))
        return str(nodes[-1].output[0])

    def weight(value: Any, kind: Any = np.int64) -> str:
        array: Array = np.asarray(value, kind)
        return view.add_weight(array, f"{name}_of_{array.dtype}")

    # The input is (steps, batch, features). A sum over features is NaN if one of them is.
    # Infinities of both signs count as a NaN, which they nearly always become in the gates.
    steps = add("Unsqueeze", add("ReduceSum", x, weight([2])), weight([1]))
    steps = add("Where", add("IsNaN", steps), weight(np.nan, number), weight(0, number))
    direction = attribute(node, "direction", b"forward")
    reverses = {b"forward": (0,), b"reverse": (1,)}.get(direction, (0, 1))
    sums = [add("CumSum", steps, weight(0), reverse=reverse) for reverse in reverses]
    nan_of_sequence = add("Concat", *sums, axis=1) if len(sums) > 1 else sums[0]
    nan_of_state = add("ReduceSum", steps, weight([0]), keepdims=0)
    recurrence = type(node).FromString(node.SerializeToString())
    nodes.insert(0, recurrence)
    for index, output in enumerate(node.output):
        if output:
            recurrence.output[index] = f"{name}_in_{index}"
            # Output 0 has all steps, and is NaN from one on. The others are the last states.
            nan = nan_of_state if index else nan_of_sequence
            nodes.append(view.node("Add", [recurrence.output[index], nan], output))
    return nodes


def wrap_integers(model: Any) -> int:
    """Replaces int32 and int64 `ReduceSum`, `ReduceProd` and `Pow` by operators that wrap around.

    Returns the number of replacements. A sum of int32 becomes one of int64. A sum of int64 becomes
    two, of its high and its low half. A product becomes a `Loop` that multiplies. A power by a
    constant becomes its multiplications. These stay: computations on sizes, which do not overflow;
    counts of booleans; and powers whose exponent is computed.
    """
    if not any(node.op_type in _OPERATORS for node in all_nodes(model.graph)):
        return 0
    onnx = import_package("onnx")
    return _Scope(onnx, model.graph, infer_graph(onnx, model), None).rewrite()


class _Scope:
    """A graph with the inferred types of its tensors, and its outer graph if it is a subgraph."""

    def __init__(self, onnx: Any, graph: Any, inferred: Any, outer: "_Scope | None") -> None:
        self._onnx = onnx
        self._graph = graph
        self._inferred = inferred
        self._outer = outer
        values = (*inferred.value_info, *inferred.input, *inferred.output)
        self._types = {value.name: value.type.tensor_type for value in values}
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._producers = {name: node for node in graph.node for name in node.output if name}
        self._new_nodes: list[Any] = []
        self._name = ""

    def rewrite(self) -> int:
        """Replaces nodes of this graph and its subgraphs that may overflow; returns the count."""
        count, nodes = 0, []
        for node, inferred_node in zip(list(self._graph.node), self._inferred.node, strict=True):
            for inner, inferred in zip(
                inner_graphs(node), inner_graphs(inferred_node), strict=True
            ):
                count += _Scope(self._onnx, inner, inferred, self).rewrite()
            self._new_nodes, self._name = [], node.output[0] if node.output else ""
            last = self._replace(node)
            if last is None:
                nodes.append(node)
                continue
            self._new_nodes[-1].output[0] = node.output[0]
            nodes += self._new_nodes
            count += 1
        if count:
            nodes = [type(node).FromString(node.SerializeToString()) for node in nodes]
            del self._graph.node[:]
            self._graph.node.extend(nodes)
        return count

    def _replace(self, node: Any) -> str | None:
        """Makes nodes that compute a node's output with wrapping; `None` if the node stays."""
        dtype = self.type_of(node.input[0]) if node.op_type in _OPERATORS else 0
        if node.domain or dtype not in _NUMPY:
            return None
        if node.op_type == "Pow":
            return self._write_power(node)
        if self._is_computed_from_sizes(node.input[0]) or self._reduces_nothing(node):
            return None
        if node.op_type == "ReduceProd":
            return self._write_product(node, dtype)
        return self._write_sum(node, dtype)

    def _write_sum(self, node: Any, dtype: int) -> str | None:
        x, *axes = node.input
        how = {"keepdims": attribute(node, "keepdims", 1)}
        producer = self.producer_of(x)
        is_cast = producer is not None and producer.op_type == "Cast"
        source_dtype = self.type_of(producer.input[0]) if is_cast else dtype
        if source_dtype == BOOL or (dtype == INT64 and source_dtype in SHORT_INTEGERS):
            return None
        if dtype == INT32:
            wide = self._add("Cast", x, to=INT64)
            return self._add("Cast", self._add("ReduceSum", wide, *axes, **how), to=INT32)
        half = self._constant(2**32, "int64")
        low = self._add("Mod", x, half)  # It is never negative.
        high = self._add("Div", self._add("Sub", x, low), half)
        low, high = (self._add("ReduceSum", part, *axes, **how) for part in (low, high))
        return self._add("Add", low, self._add("Mul", high, half))

    def _write_product(self, node: Any, dtype: int) -> str | None:
        x = node.input[0]
        axes, rank = self._axes(node), self.rank_of(x)
        keeps = bool(attribute(node, "keepdims", 1))
        if axes is None or (rank is None and (keeps or len(axes) != 1)):
            return None
        if rank is not None:
            axes = sorted(axis % rank for axis in axes) or list(range(rank))
        zero, unit = self._constant(0, _NUMPY[dtype]), self._constant(1, _NUMPY[dtype])
        product = x
        for axis in reversed(axes):
            along = self._constant([axis], "int64")
            body = self._multiplication(product, axis, dtype)
            # The loop starts with ones in the shape of the result.
            nothing = self._add("ReduceSum", self._add("Mul", product, zero), along, keepdims=0)
            first = self._add("Add", nothing, unit)
            length = self._add("Gather", self._add("Shape", product), self._constant(axis, "int64"))
            always = self._constant(np.True_, "bool")
            product = self._add("Loop", length, always, first, body=body)
        return self._add("Unsqueeze", product, self._constant(axes, "int64")) if keeps else product

    def _multiplication(self, x: str, axis: int, dtype: int) -> Any:
        """Returns the body graph of a `Loop` that multiplies a tensor's entries along an axis.

        Onnxruntime crashes on a `Scan` over an axis of size 0.
        """
        make, name = self._onnx.helper.make_node, f"{self._name}__{len(self._new_nodes)}"
        previous, factor, product = f"{name}_before", f"{name}_factor", f"{name}_product"
        nodes = [
            make("Gather", [x, f"{name}_index"], [factor], axis=axis),
            make("Mul", [previous, factor], [product]),
        ]
        return make_loop_body(self._onnx, name, nodes, previous, product, dtype)

    def _write_power(self, node: Any) -> str | None:
        x, exponent = node.input
        value = self.value_of(exponent)
        if value is None or value.size != 1 or value.dtype.kind not in "iu":
            return None
        power, rank = int(value.reshape(())), self.rank_of(x)
        if not 1 < power <= _HIGHEST_POWER or (value.ndim and (rank is None or rank < value.ndim)):
            return None
        result, square = "", x  # By squaring: `square` is `x` to the power 1, 2, 4, 8 and so on.
        while True:
            if power % 2:
                result = self._add("Mul", result, square) if result else square
            power //= 2
            if not power:
                return result
            square = self._add("Mul", square, square)

    def _reduces_nothing(self, node: Any) -> bool:
        """Returns True if a reduction without axes means to reduce nothing."""
        return bool(attribute(node, "noop_with_empty_axes", 0)) and not self._axes(node)

    def _axes(self, node: Any) -> list[int] | None:
        """Returns the axes that a node reduces: `[]` for all, `None` if they are unknown."""
        if len(node.input) < 2 or not node.input[1]:  # noqa: PLR2004
            return [int(axis) for axis in attribute(node, "axes", ())]
        value = self.value_of(node.input[1])
        return None if value is None else [int(axis) for axis in value.reshape(-1)]

    def _is_computed_from_sizes(self, name: str) -> bool:
        """Returns True if a tensor is computed from sizes and constants alone."""
        if self.value_of(name) is not None:
            return True
        node = self.producer_of(name)
        if node is None or node.op_type not in (*_SIZE_SOURCES, *_SIZE_OPERATORS):
            return False
        return node.op_type in _SIZE_SOURCES or all(
            self._is_computed_from_sizes(input_name) for input_name in node.input
        )

    def type_of(self, name: str) -> int:
        """Returns a tensor's ONNX element type, an integer; 0 if it is unknown."""
        if name in self._types:
            return int(self._types[name].elem_type)
        if name in self._weights:
            return int(self._weights[name].data_type)
        return self._outer.type_of(name) if self._outer is not None else 0

    def rank_of(self, name: str) -> int | None:
        """Returns a tensor's rank; `None` if it is unknown."""
        tensor_type = self._types.get(name)
        if tensor_type is not None:
            return len(tensor_type.shape.dim) if tensor_type.HasField("shape") else None
        return self._outer.rank_of(name) if self._outer is not None else None

    def producer_of(self, name: str) -> Any:
        """Returns the node that computes a tensor, in this graph or an outer one, or `None`."""
        if name in self._producers or self._outer is None:
            return self._producers.get(name)
        return self._outer.producer_of(name)

    def value_of(self, name: str) -> Any:
        """Returns the array of a constant tensor; `None` if it is not constant."""
        if name in self._weights:
            return self._onnx.numpy_helper.to_array(self._weights[name])
        node = self._producers.get(name)
        if node is not None:
            is_value = node.op_type == "Constant" and node.attribute[0].name == "value"
            return self._onnx.numpy_helper.to_array(node.attribute[0].t) if is_value else None
        return self._outer.value_of(name) if self._outer is not None else None

    def _add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        output = f"{self._name}__wrapped_{len(self._new_nodes)}"
        self._new_nodes.append(
            self._onnx.helper.make_node(operator, list(inputs), [output], **attributes)
        )
        return output

    def _constant(self, value: Any, dtype: str) -> str:
        tensor = self._onnx.numpy_helper.from_array(np.array(value, dtype))
        return self._add("Constant", value=tensor)
