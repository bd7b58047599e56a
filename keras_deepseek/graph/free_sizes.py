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
from keras_deepseek.graph.trace import CannotOpenError, as_symbols

_LONG = 4099
"""A length that code with a special case for long sequences treats as long."""


@dataclasses.dataclass(frozen=True)
class FreeAxis:
    """An axis whose size differs between batches: the places where it stands in the inputs."""

    places: tuple[tuple[int, int], ...]  # Each is the index of an input, and an axis of it.

    @property
    def is_batch(self) -> bool:
        """True for the batch axis."""
        return self.places[0][1] == 0

    def __str__(self) -> str:
        return " and ".join(f"axis {axis} of input {index}" for index, axis in self.places)


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
        return {"operation": operation, "places": [list(each) for each in self.places]}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ReadSizes":
        """Returns the operation of a config."""
        operation = keras.saving.deserialize_keras_object(config["operation"])
        return cls(operation, [tuple(each) for each in config["places"]])

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

    The batch axis may be free, and those that the model leaves open. Axes of one size are one axis
    if the model can't be traced with different sizes.

    Args:
        trace: A function from inputs, a structure of `KerasTensor`s, to a new graph.
        example: Example inputs, of known shapes.
        declared: The shapes that the model declares, with `None` for an unknown size.
    """
    shapes = [tuple(each.shape) for each in tree.flatten(example)]
    graph = trace(as_symbols(example))
    taken = {size for node in graph.nodes() for spec in node.outputs for size in spec.shape}
    free: list[FreeAxis] = []
    for places in _open_places(declared, shapes):
        tied = [FreeAxis(places)]
        separate = [FreeAxis((place,)) for place in places]
        for axes in [tied] if tied[0].is_batch or separate == tied else [separate, tied]:
            found = _trace_with_free(trace, example, [*free, *axes], taken)
            if found is not None and found.leaves.keys() == graph.leaves.keys():
                graph = found
                free += axes
                break
    return graph, free


def _open_places(declared: Sequence[Any], shapes: Sequence[Shape]) -> list[tuple[Any, ...]]:
    """Returns the axes of the batch and those of unknown size, in groups of the same size.

    The batch axes come first. Each axis is the index of an input, and its place in the shape.
    """
    groups: dict[tuple[bool, int], list[tuple[int, int]]] = {}
    for index, (spec, shape) in enumerate(zip(declared, shapes, strict=True)):
        for axis, (known, size) in enumerate(zip(spec, shape, strict=True)):
            if axis == 0 or known is None:
                groups.setdefault((axis != 0, size), []).append((index, axis))
    return [tuple(places) for _, places in sorted(groups.items())]


def _trace_with_free(
    trace: Callable[[Any], Graph], example: Any, axes: Sequence[FreeAxis], taken: Collection[int]
) -> Graph | None:
    """Returns a graph that reads the sizes of axes at run time, or `None` if that can't be.

    Its own sizes of these axes are near those of the example, and not among the `taken` ones. It is
    compared with graphs of other sizes.
    """
    shapes = [tuple(each.shape) for each in tree.flatten(example)]
    own: list[int] = []
    for index, place in (axis.places[0] for axis in axes):
        near = itertools.count(max(2, shapes[index][place]))
        own.append(next(size for size in near if size not in {*taken, *own}))
    # Differences of sizes must differ too.
    larger = [size + 5 + 2 * number for number, size in enumerate(own)]
    smallest = [1 for _ in own]
    longest = [
        size if axis.is_batch else _LONG + 3 * number
        for number, (size, axis) in enumerate(zip(own, axes, strict=True))
    ]
    graphs: list[Graph] = []
    variants: list[list[int]] = []
    for sizes in (own, larger, *([] if longest == own else [longest]), smallest):
        try:
            graph = trace(as_symbols(example, with_sizes(shapes, axes, sizes)))
        except CannotOpenError:  # The model does not take these sizes.
            if sizes is smallest:
                continue
            return None
        # Compared before the next trace: a loop over a long axis would take seconds.
        if graphs and _node_keys(graph) != _node_keys(graphs[0]):
            return None
        graphs.append(graph)
        variants.append(sizes)
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
    # A size that differs between batches must not be that of a fixed axis.
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
        values: list[Any] = [attributes(each).get(name) for each in operations]
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
    places = []
    sources = []
    for (name, position), sizes in changes.items():
        index, source_axis = axes[sizes].places[0]
        places.append((name, position, source_axis))
        sources.append(Value(inputs[index]))
    node.args, node.kwargs = (tuple(sources), node.args, node.kwargs), {}
    node.operation = ReadSizes(node.operation, places)
    node.kind = "ReadSizes"
    return True


def with_sizes(
    shapes: Sequence[Shape], axes: Sequence[FreeAxis], sizes: Sequence[int]
) -> list[Shape]:
    """Returns shapes with other sizes of axes."""
    changed = [list(shape) for shape in shapes]
    for axis, size in zip(axes, sizes, strict=True):
        for index, place in axis.places:
            changed[index][place] = size
    return [tuple(shape) for shape in changed]
