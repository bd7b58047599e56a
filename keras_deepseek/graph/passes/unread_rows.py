"""Leaves out rows that nobody reads.

`x[:, 0]` behind a stack of blocks makes the last block compute one row: its queries, products and
position-wise operations are cut to the row that is read. Keys and values stay.
"""

import dataclasses
import math
import operator

import keras

from keras_deepseek.graph.ir import Graph, Node, Rewrite, Spec, Value
from keras_deepseek.graph.passes.contraction import as_product, is_contraction
from keras_deepseek.graph.passes.normalized_axes import normalized_axes
from keras_deepseek.graph.trace import record

_MOST_KEPT = 0.75
"""The largest share of rows for which a cut is worth it."""

# fmt: off
_ELEMENTWISE = {
    "Abs", "Add", "Cast", "ConvertToTensor", "Divide", "Elu", "Equal", "Erf", "Exp", "Gelu",
    "Greater", "GreaterEqual", "HardSigmoid", "HardSilu", "Identity", "LeakyRelu", "Less",
    "LessEqual", "Log", "LogSigmoid", "LogicalAnd", "LogicalNot", "LogicalOr", "Maximum",
    "Minimum", "Multiply", "Negative", "NotEqual", "Power", "Relu", "Relu6", "Rsqrt", "Selu",
    "Sigmoid", "Silu", "Softplus", "Softsign", "Sqrt", "Square", "StopGradient", "Subtract",
    "Tanh", "TrueDivide", "Where",
}
# fmt: on


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The rows that are read of a value: a slice of one axis, and their number."""

    axis: int
    start: int | None
    stop: int | None
    number: int

    def cut(self, value: Value, layer: str) -> Value:
        """Records the slice of a value."""
        rows = slice(self.start, self.stop)
        key = [slice(None)] * len(value.shape)
        key[self.axis] = rows
        return record(lambda x: x[tuple(key)], value, layer=layer)


def cut_unread_rows(graph: Graph, training: bool) -> list[Rewrite]:
    """Computes only the rows that slices and indices read. Works in inference and training.

    Dropout then draws fewer random numbers, so a training step draws others than before.
    """
    nodes = graph.nodes()
    reads = {node: found for node in nodes if (found := _reading(node, graph)) is not None}
    if not reads:
        return []
    region = _region(graph, nodes, reads)
    products = _products_before(nodes, region)
    reads = {node: rows for node, rows in reads.items() if products.get(node.args[0].node)}
    cutter = _Cutter(region, products)
    replacements = {}
    rewrites = []
    for node in nodes:
        cutter.add(node)
        if node in reads:
            value, rows = node.args[0], reads[node]
            replacements[Value(node)] = cutter.read(node, rows)
            layers = tuple(dict.fromkeys(each.layer for each in products[value.node]))
            text = f"computes {rows.number} of {value.shape[rows.axis]} rows"
            rewrites.append(Rewrite(layers, text))
    graph.replace(replacements)
    return rewrites


def _reading(node: Node, graph: Graph) -> _Rows | None:
    """Returns the rows that an index or slice of one axis reads, or `None` for other nodes."""
    if node.kind != "GetItem" or not isinstance(node.args[0], Value):
        return None
    value, key = node.args
    key = tuple(key) if isinstance(key, list | tuple) else (key,)  # Saved models have lists.
    if not all(isinstance(each, int | slice) for each in key):
        return None
    cuts = [(axis, each) for axis, each in enumerate(key) if each != slice(None)]
    if len(cuts) != 1:
        return None
    (axis, rows), size = cuts[0], value.shape[cuts[0][0]]
    is_free = graph.is_free(size)
    if axis == 0 and is_free:  # The batch axis.
        return None
    if isinstance(rows, int):
        index = rows if is_free else rows % size
        found = _Rows(axis, index, None if index == -1 else index + 1, 1)
    elif rows.step not in (None, 1) or graph.is_free(node.spec.shape[axis]):
        return None
    elif is_free:
        found = _Rows(axis, rows.start, rows.stop, node.spec.shape[axis])
    else:
        start, stop, _ = rows.indices(size)
        found = _Rows(axis, start, stop, max(0, stop - start))
    return found if 0 < found.number <= _MOST_KEPT * size else None


def _region(
    graph: Graph, nodes: list[Node], reads: dict[Node, _Rows]
) -> dict[Node, tuple[_Rows, dict[Value, int | None]]]:
    """Returns the nodes of which all readers read the same rows.

    For each there are the rows, and the axis of these rows in each value that the node reads.
    """
    asked: dict[Value, _Rows | None] = dict.fromkeys(graph.roots())  # `None` stands for all rows.
    region = {}

    def ask(value: Value, rows: _Rows | None) -> None:
        if asked.setdefault(value, rows) != rows:
            asked[value] = None

    for node in reversed(nodes):
        if node in reads:
            ask(node.args[0], reads[node])
            continue
        rows = asked.get(Value(node)) if len(node.outputs) == 1 else None
        axes = _operand_axes(node, rows.axis) if rows else None
        if rows is None or axes is None:
            for value in node.values():
                ask(value, None)
            continue
        region[node] = (rows, axes)
        for value in node.values():
            axis = axes[value]
            ask(value, None if axis is None else dataclasses.replace(rows, axis=axis))
    return region


def _products_before(
    nodes: list[Node], region: dict[Node, tuple[_Rows, dict[Value, int | None]]]
) -> dict[Node, tuple[Node, ...]]:
    """Returns, for the nodes of a region, the products of it that they need."""
    found: dict[Node, tuple[Node, ...]] = {}
    for node in nodes:
        if node in region:
            axes = region[node][1]
            before = [found.get(value.node, ()) for value, axis in axes.items() if axis is not None]
            own = (node,) if is_contraction(node) or node.kind == "DotProductAttention" else ()
            found[node] = tuple(dict.fromkeys([each for some in before for each in some] + [*own]))
    return found


class _Cutter:
    """Makes the nodes of a region again, with the rows that are read alone."""

    def __init__(
        self,
        region: dict[Node, tuple[_Rows, dict[Value, int | None]]],
        products: dict[Node, tuple[Node, ...]],
    ) -> None:
        self._region = region
        self._products = products
        self._cut: dict[tuple[Value, _Rows], Value] = {}

    def add(self, node: Node) -> None:
        """Makes a node of the region again. Those that it reads were added before."""
        if not self._products.get(node):
            return
        rows, axes = self._region[node]

        def cut(value: Value) -> Value:
            axis = axes[value]
            return value if axis is None else self._rows(value, rows, axis, node.layer)

        args, kwargs = node.map_values(cut)
        shape = list(node.spec.shape)
        shape[rows.axis] = rows.number
        if node.kind == "Reshape":
            sizes = list(node.operation.newshape)  # -1 stays where the batch size is free.
            sizes[rows.axis] = rows.number
            made = record(keras.ops.reshape, args[0], tuple(sizes), layer=node.layer)
        else:
            spec = Spec(tuple(shape), node.spec.dtype)
            made = Value(Node(node.kind, [spec], node.operation, args, kwargs, node.layer))
        self._cut[Value(node), rows] = made

    def read(self, node: Node, rows: _Rows) -> Value:
        """Returns the value of a node that reads rows, from the rows that are computed."""
        value = self._rows(node.args[0], rows, rows.axis, node.layer)
        if len(node.spec.shape) == len(value.shape):
            return value
        # TensorFlow's `squeeze` fails, since a slice of an unknown length may have no row.
        index = (*[slice(None)] * rows.axis, 0)
        return record(operator.getitem, value, index, layer=node.layer)

    def _rows(self, value: Value, rows: _Rows, axis: int, layer: str) -> Value:
        rows = dataclasses.replace(rows, axis=axis)
        if (value, rows) not in self._cut:
            self._cut[value, rows] = rows.cut(value, layer)
        return self._cut[value, rows]


def _operand_axes(node: Node, axis: int) -> dict[Value, int | None] | None:
    """Returns the axis to cut of each value that a node reads, to cut an axis of its output.

    It is `None` for a value that stays whole. The result is `None` if the output can't be cut so.
    """
    rank = len(node.spec.shape)

    def aligned(value: Value) -> int | None:
        own = axis - rank + len(value.shape)
        return own if own >= 0 and value.shape[own] != 1 else None

    values = node.values()
    if node.is_layer:
        # A Dropout draws numbers for each element; the rows that are cut off were independent.
        is_plain_dropout = (
            type(node.operation) is keras.layers.Dropout and node.operation.noise_shape is None
        )
        return {value: aligned(value) for value in values} if is_plain_dropout else None
    if node.kind in _ELEMENTWISE:
        return {value: aligned(value) for value in values}
    if node.kind in ("LayerNorm", "RMSNorm", "Softmax"):
        if axis in normalized_axes(node):
            return None
        return {value: aligned(value) if value == values[0] else None for value in values}
    if node.kind == "Concatenate":
        is_cut = node.operation.axis % rank != axis
        return dict.fromkeys(values, axis) if is_cut else None
    if node.kind == "ExpandDims" and isinstance(node.operation.axis, int):
        new = node.operation.axis % rank
        return None if new == axis else {values[0]: axis - (axis > new)}
    if node.kind == "Reshape":
        return _reshaped_axis(node, axis)
    if node.kind == "DotProductAttention":
        return _query_axes(node, axis)
    product = as_product(node)
    if product is None or product.factors:
        return None
    label = product.out[axis]
    found: dict[Value, int | None] = {}
    for value, labels in zip(product.operands, product.labels, strict=True):
        own = labels.index(label) if label in labels else None
        if found.setdefault(value, own) != own:  # One tensor on both sides, to be cut on one.
            return None
    return found


def _reshaped_axis(node: Node, axis: int) -> dict[Value, int | None] | None:
    """Returns the axis of a reshape's input that stays the given axis of its output."""
    before, after = node.args[0].shape, node.spec.shape
    for own, size in enumerate(before):
        if size == after[axis] and math.prod(before[:own]) == math.prod(after[:axis]):
            return {node.args[0]: own}
    return None


def _query_axes(node: Node, axis: int) -> dict[Value, int | None] | None:
    """Returns the axes to cut of the arguments of an attention, to cut its queries."""
    query, key, value, *others = node.values()
    if axis != 1 or node.operation.is_causal or query in (key, value):
        return None
    masks = {each: 2 if len(each.shape) == 4 and each.shape[2] != 1 else None for each in others}
    return {key: None, value: None, **masks, query: 1}
