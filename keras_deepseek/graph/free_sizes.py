"""Graphs for any batch size, and for any size of other axes where that is possible.

A layer writes sizes into operations: `ops.shape(x)[0]` of a symbol is a number. Two traces at two
sizes differ where a layer did so, and the program reads that size when it runs. Inside of
TensorFlow's `fit` and in exports the batch size is unknown, so a program of one size is useless
there.
"""

import copy
import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import keras
from keras import tree

from keras_deepseek.graph.ir import Graph, Node, Shape, Value, attributes, resize_reshape, value_key
from keras_deepseek.graph.known_code import CannotOpenError
from keras_deepseek.graph.trace import as_symbols

_LONG = 4099
"""A length that code with a special case for long sequences treats as long."""


@dataclasses.dataclass(frozen=True)
class FreeAxis:
    """An axis whose size differs between batches, and the axes of inputs that have this size."""

    input_axes: tuple[tuple[int, int], ...]  # Pairs: the index of an input, and an axis of it.

    @property
    def is_batch(self) -> bool:
        """True for the batch axis."""
        return self.input_axes[0][1] == 0

    def __str__(self) -> str:
        return " and ".join(f"axis {axis} of input {index}" for index, axis in self.input_axes)


@keras.saving.register_keras_serializable("keras_deepseek")
class ReadSizes(keras.Operation):
    """An operation with sizes in its attributes, which it reads from the inputs when it runs.

    Args:
        operation: The operation.
        places: For each size: the name of the attribute, the position in it, and the axis to read
            of the corresponding tensor in `sources`.
    """

    def __init__(self, operation: keras.Operation, places: Sequence[tuple[str, int, int]]) -> None:
        super().__init__(name=operation.name)
        self.operation = operation
        self.places = tuple(places)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        operation = keras.saving.serialize_keras_object(self.operation)
        return {"operation": operation, "places": [list(triple) for triple in self.places]}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ReadSizes":
        """Returns the operation of a config."""
        operation = keras.saving.deserialize_keras_object(config["operation"])
        return cls(operation, [tuple(triple) for triple in config["places"]])

    def call(self, sources: Sequence[Any], args: Any, kwargs: Any) -> Any:
        """Runs the operation with the sizes of the `sources`."""
        operation = copy.copy(self.operation)
        for (name, position, axis), source in zip(self.places, sources, strict=True):
            sizes = list(getattr(operation, name))
            sizes[position] = keras.ops.shape(source)[axis]
            vars(operation)[name] = tuple(sizes)
        return operation.call(*args, **kwargs)


def trace_free(
    trace: Callable[[Any], Graph], example: Any, declared: Sequence[Any]
) -> tuple[Graph, list[FreeAxis]]:
    """Traces a model at several sizes; returns a graph, and the axes that are free in it.

    The batch axis may be free, and those that the model leaves open. Axes of equal size count as
    one axis if the model can't be traced with different sizes of them. No axis is free if code of
    users computes with sizes.

    Args:
        trace: A function from inputs, a structure of `KerasTensor`s, to a new graph.
        example: Example inputs, of known shapes.
        declared: The shapes that the model declares, with `None` for an unknown size.
    """
    shapes = [tuple(symbol.shape) for symbol in tree.flatten(example)]
    graph = trace(as_symbols(example))
    if graph.reads_sizes:
        return graph, []
    used_sizes = {size for node in graph.nodes() for spec in node.outputs for size in spec.shape}
    free: list[FreeAxis] = []
    for input_axes in _group_open_axes(declared, shapes):
        tied = [FreeAxis(input_axes)]
        separate = [FreeAxis((input_axis,)) for input_axis in input_axes]
        for axes in [tied] if tied[0].is_batch or separate == tied else [separate, tied]:
            candidate = _trace_with_free(trace, example, [*free, *axes], used_sizes)
            if candidate is not None and candidate.leaves.keys() == graph.leaves.keys():
                graph = candidate
                free += axes
                break
    return graph, free


def _group_open_axes(declared: Sequence[Any], shapes: Sequence[Shape]) -> list[tuple[Any, ...]]:
    """Returns the axes of the batch and those of unknown size, in groups of the same size.

    The batch axes come first. Each axis is a pair: the index of an input, and an axis of it.
    """
    groups: dict[tuple[bool, int], list[tuple[int, int]]] = {}
    for index, (spec, shape) in enumerate(zip(declared, shapes, strict=True)):
        for axis, (declared_size, size) in enumerate(zip(spec, shape, strict=True)):
            if axis == 0 or declared_size is None:
                groups.setdefault((axis != 0, size), []).append((index, axis))
    return [tuple(input_axes) for _, input_axes in sorted(groups.items())]


def _trace_with_free(
    trace: Callable[[Any], Graph],
    example: Any,
    axes: Sequence[FreeAxis],
    used_sizes: Collection[int],
) -> Graph | None:
    """Returns a graph that reads the sizes of axes at run time, or `None` if that can't be.

    The model is traced at several sizes. The graphs may differ in nothing but these sizes. The
    returned one was traced at sizes near those of the example that are not among `used_sizes`.
    """
    shapes = [tuple(symbol.shape) for symbol in tree.flatten(example)]
    near_sizes: list[int] = []
    for index, input_axis in (axis.input_axes[0] for axis in axes):
        candidates = itertools.count(max(2, shapes[index][input_axis]))
        excluded = {*used_sizes, *near_sizes}
        near_sizes.append(next(size for size in candidates if size not in excluded))
    # Each axis grows by another number, so that a difference of two sizes changes as well.
    larger = [size + 5 + 2 * number for number, size in enumerate(near_sizes)]
    smallest = [1 for _ in near_sizes]
    longest = [
        size if axis.is_batch else _LONG + 3 * number
        for number, (size, axis) in enumerate(zip(near_sizes, axes, strict=True))
    ]
    graphs: list[Graph] = []
    variants: list[list[int]] = []
    for sizes in (near_sizes, larger, *([] if longest == near_sizes else [longest]), smallest):
        try:
            graph = trace(as_symbols(example, with_sizes(shapes, axes, sizes)))
        except CannotOpenError:  # The model does not take these sizes.
            if sizes is smallest:  # It may well not take sizes of 1.
                continue
            return None
        # Compared before the next trace: a loop over a long axis would take seconds.
        if graphs and _node_keys(graph) != _node_keys(graphs[0]):
            return None
        graphs.append(graph)
        variants.append(sizes)
    # The sizes of an axis in all graphs, in order, tell which axis they are those of.
    axis_of_sizes = dict(zip(zip(*variants, strict=True), axes, strict=True))
    varied: set[int] = set()
    fixed: set[int] = set()
    for nodes in zip(*(graph.nodes() for graph in graphs), strict=True):
        for specs in zip(*(node.outputs for node in nodes), strict=True):
            for lengths in zip(*(spec.shape for spec in specs), strict=True):
                (fixed if len(set(lengths)) == 1 else varied).add(lengths[0])
        changes = _changed_sizes([node.operation for node in nodes])
        if changes is None or not _read_sizes(nodes[0], changes, axis_of_sizes, graphs[0].inputs):
            return None
    graphs[0].free_sizes = frozenset(varied)
    # In the returned graph, a number must not be the size of both a free and a fixed axis.
    return graphs[0] if varied.isdisjoint(fixed) else None


def _node_keys(graph: Graph) -> list[Any]:
    """Returns what must be equal in the nodes of two graphs: all but the sizes."""
    nodes = graph.nodes()
    numbers = {id(node): number for number, node in enumerate(nodes)}
    return [
        value_key(
            (
                node.kind,
                node.map_values(lambda value: (numbers[id(value.node)], value.index)),
                node.operation if node.is_layer else node.content,
                [(len(spec.shape), spec.dtype) for spec in node.outputs],
            )
        )
        for node in nodes
    ]


def _changed_sizes(operations: Sequence[Any]) -> dict[tuple[str, int], Shape] | None:
    """Returns the sizes that differ between attributes of operations, by attribute and position.

    The result is `None` for a difference of another kind.
    """
    changes: dict[tuple[str, int], Shape] = {}
    if operations[0] is None or isinstance(operations[0], keras.Layer):
        return changes
    for name in attributes(operations[0]):
        values: list[Any] = [attributes(operation).get(name) for operation in operations]
        if all(value_key(value) == value_key(values[0]) for value in values):
            continue
        is_list = all(isinstance(value, list | tuple) for value in values)
        if not is_list or len({len(value) for value in values}) != 1:
            return None
        for position, sizes in enumerate(zip(*values, strict=True)):
            if any(isinstance(size, list | tuple) for size in sizes):  # Of `ops.pad`.
                return None
            if len(set(sizes)) != 1:
                changes[name, position] = sizes
    return changes


def _read_sizes(
    node: Node,
    changes: dict[tuple[str, int], Shape],
    axes: Mapping[Shape, FreeAxis],
    inputs: Sequence[Node],
) -> bool:
    """Makes an operation read the sizes that differ; returns False if it can't."""
    if not changes:
        return True
    # A reshape finds one size by itself, whatever it depends on.
    if node.kind == "Reshape" and len(changes) == 1 and -1 not in node.operation.newshape:
        ((_, position),) = changes
        node.operation = resize_reshape(node.operation, position, -1)
        return True
    if any(sizes not in axes for sizes in changes.values()):
        return False
    attribute_sizes = []
    sources = []
    for (name, position), sizes in changes.items():
        index, source_axis = axes[sizes].input_axes[0]
        attribute_sizes.append((name, position, source_axis))
        sources.append(Value(inputs[index]))
    node.args, node.kwargs = (tuple(sources), node.args, node.kwargs), {}
    node.operation = ReadSizes(node.operation, attribute_sizes)
    node.kind = "ReadSizes"
    return True


def with_sizes(
    shapes: Sequence[Shape], axes: Sequence[FreeAxis], sizes: Sequence[int]
) -> list[Shape]:
    """Returns shapes with other sizes of axes."""
    changed = [list(shape) for shape in shapes]
    for axis, size in zip(axes, sizes, strict=True):
        for index, input_axis in axis.input_axes:
            changed[index][input_axis] = size
    return [tuple(shape) for shape in changed]
