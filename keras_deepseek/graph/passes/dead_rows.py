"""Dead-row elimination: leaves out rows that no operation reads.

`x[:, 0]` behind a stack of blocks makes the last block compute one row: its queries, products and
position-wise operations are cut to the row that is read. Keys and values stay.
"""

import dataclasses
import operator

from keras_deepseek.graph.ir import Changes, Graph, Node, Rewrite, Spec, Value, resize_reshape
from keras_deepseek.graph.passes.axes import operand_axes
from keras_deepseek.graph.passes.contraction import is_contraction
from keras_deepseek.graph.trace import record

_MOST_SHARE = 0.75
"""The largest share of rows for which a cut is worth it."""


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The rows that are read of a value: a slice of one axis, and their number."""

    axis: int
    start: int | None
    stop: int | None
    number: int

    def cut(self, value: Value, layer: str) -> Value:
        key = [slice(None)] * len(value.shape)
        key[self.axis] = slice(self.start, self.stop)
        return record(lambda x: x[tuple(key)], value, layer=layer)


@dataclasses.dataclass(frozen=True)
class _Cut:
    """The rows of a node that all its readers read, and the axis of these rows in each input."""

    rows: _Rows
    axes: dict[Value, int | None]
    layers: tuple[str, ...] = ()
    """The layers of the products that the cut saves, of this node and before it."""


def eliminate_dead_rows(graph: Graph, training: bool) -> Changes:
    """Computes only the rows that slices and indices read. Works in inference and training.

    Dropout then draws fewer random numbers, so a training step draws others than before.
    """
    nodes = graph.nodes()
    reads = {node: rows for node in nodes if (rows := _reading(node, graph)) is not None}
    if not reads:
        return
    region = _region(graph, nodes, reads)
    cutter = _Cutter()
    for node in nodes:
        if node in region:
            cutter.add(node, region[node])
        elif node in reads and (value := node.args[0]).node in region:
            layers = region[value.node].layers
            if not layers:
                continue
            text = f"computes {reads[node].number} of {value.shape[reads[node].axis]} rows"
            yield node, [cutter.read(node, reads[node])], Rewrite(layers, text)


def _reading(node: Node, graph: Graph) -> _Rows | None:
    """Returns the rows that an index or slice of one axis reads, or `None` for other nodes."""
    if node.kind == "Take" and isinstance(node.operation.axis, int):
        value, rows = node.args[:2]
        axis = node.operation.axis
        cuts = [(axis % len(value.shape), rows)] if type(rows) is int else []
    elif node.kind == "GetItem":
        value, key = node.args
        key = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(part, int | slice) for part in key):
            return None
        cuts = [(axis, part) for axis, part in enumerate(key) if part != slice(None)]
    else:
        return None
    if len(cuts) != 1 or not isinstance(value, Value):
        return None
    ((axis, rows),) = cuts
    size = value.shape[axis]
    is_free = size in graph.free_sizes
    if axis == 0 and is_free:  # The batch axis.
        return None
    if isinstance(rows, int):
        index = rows if is_free else rows % size
        stop = None if index == -1 else index + 1  # The slice `-1:0` would be empty.
        rows_read = _Rows(axis, index, stop, 1)
    elif rows.step not in (None, 1) or node.spec.shape[axis] in graph.free_sizes:
        return None
    elif is_free:
        rows_read = _Rows(axis, rows.start, rows.stop, node.spec.shape[axis])
    else:
        start, stop, _ = rows.indices(size)
        rows_read = _Rows(axis, start, stop, max(0, stop - start))
    return rows_read if 0 < rows_read.number <= _MOST_SHARE * size else None


def _region(graph: Graph, nodes: list[Node], reads: dict[Node, _Rows]) -> dict[Node, _Cut]:
    """Returns the nodes of which all readers read the same rows."""
    # The rows that are read of each value. `None` stands for all rows.
    rows_of: dict[Value, _Rows | None] = dict.fromkeys(graph.roots())
    region: dict[Node, _Cut] = {}

    def add_reader(value: Value, rows: _Rows | None) -> None:
        if rows_of.setdefault(value, rows) != rows:
            rows_of[value] = None

    for node in reversed(nodes):
        outputs = [Value(node, index) for index in range(len(node.outputs))]
        rows_of_outputs = {rows_of[value] for value in outputs if value in rows_of}
        rows = rows_of_outputs.pop() if len(rows_of_outputs) == 1 else None
        axes = operand_axes(node, rows.axis) if rows and node.operation is not None else None
        if rows is not None and axes is not None:
            region[node] = _Cut(rows, axes)
            for value, axis in axes.items():
                add_reader(value, None if axis is None else dataclasses.replace(rows, axis=axis))
        elif node in reads:
            add_reader(node.args[0], reads[node])
        else:
            for value in node.values():
                add_reader(value, None)
    for node in nodes:  # From the inputs on: each cut gets the products of those before it.
        if node in region:
            cut = region[node]
            inputs = [value.node for value, axis in cut.axes.items() if axis is not None]
            layers = [
                layer for inner in inputs if inner in region for layer in region[inner].layers
            ]
            if is_contraction(node) or node.kind == "DotProductAttention":
                layers.append(node.layer)
            region[node] = dataclasses.replace(cut, layers=tuple(dict.fromkeys(layers)))
    return region


class _Cutter:
    """Makes new nodes for a region, which compute only the rows that are read."""

    def __init__(self) -> None:
        self._cut_values: dict[tuple[Value, _Rows], Value] = {}

    def add(self, node: Node, cut: _Cut) -> None:
        """Makes the new node for a node, after those for the nodes that it reads."""
        if not cut.layers:
            return
        rows = cut.rows

        def shorten(value: Value) -> Value:
            axis = cut.axes[value]
            return value if axis is None else self._rows(value, rows, axis, node.layer)

        args, kwargs = node.map_values(shorten)
        operation = node.operation
        if node.kind == "Reshape":
            operation = resize_reshape(operation, rows.axis, rows.number)
        specs = [Spec(_with_rows(spec.shape, rows), spec.dtype) for spec in node.outputs]
        cut_node = Node(node.kind, specs, operation, args, kwargs, node.layer)
        for index in range(len(node.outputs)):
            self._cut_values[Value(node, index), rows] = Value(cut_node, index)

    def read(self, node: Node, rows: _Rows) -> Value:
        """Returns the value of a node that reads `rows`, made of the rows that are computed."""
        value = self._rows(node.args[0], rows, rows.axis, node.layer)
        if len(node.spec.shape) == len(value.shape):
            return value
        # TensorFlow's `squeeze` fails, since a slice of an unknown length may have no row.
        index = (*[slice(None)] * rows.axis, 0)
        return record(operator.getitem, value, index, layer=node.layer)

    def _rows(self, value: Value, rows: _Rows, axis: int, layer: str) -> Value:
        rows = dataclasses.replace(rows, axis=axis)
        if (value, rows) not in self._cut_values:
            self._cut_values[value, rows] = rows.cut(value, layer)
        return self._cut_values[value, rows]


def _with_rows(shape: tuple[int, ...], rows: _Rows) -> tuple[int, ...]:
    return (*shape[: rows.axis], rows.number, *shape[rows.axis + 1 :])
