"""Graphs for any batch size, and for any size of other axes where that is possible.

A layer writes sizes into operations: `ops.shape(x)[0]` of a symbol is a number. Two traces at two
sizes differ where a layer did so, and the program reads that size when it runs. Inside of
TensorFlow's `fit` and in exports the batch size is unknown, so a program of one size is useless
there.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import tree

from keras_deepseek.graph.ir import CONSTANT, Graph, Node, Shape, Value, attributes, value_key
from keras_deepseek.graph.trace import CannotOpenError

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


def find_free_axes(specs: Sequence[Any], shapes: Sequence[Shape]) -> list[FreeAxis]:
    """Returns the axes that may be free: the batch's, and those of unknown size in the specs.

    Args:
        specs: The shapes of the model's inputs, with `None` for an unknown size.
        shapes: The shapes of example inputs. Axes of one size are taken to be the same axis.
    """
    groups: dict[tuple[bool, int], list[tuple[int, int]]] = {}
    for index, (spec, shape) in enumerate(zip(specs, shapes, strict=True)):
        for axis, (declared, size) in enumerate(zip(spec, shape, strict=True)):
            if axis == 0 or declared is None:
                groups.setdefault((axis != 0, size), []).append((index, axis))
    return [FreeAxis(tuple(places)) for _, places in sorted(groups.items())]


def trace_free(
    trace: Callable[[Any], Graph], example: Any, candidates: Sequence[FreeAxis]
) -> tuple[Graph, list[FreeAxis]]:
    """Traces a model at several sizes; returns a graph, and the axes that are free in it.

    Args:
        trace: A function from inputs, a structure of `KerasTensor`s, to a new graph.
        example: Example inputs, of known shapes.
        candidates: The axes to try. Where a size can't be read at run time, the axis is not free.
    """
    shapes = [tuple(each.shape) for each in tree.flatten(example)]
    plain = trace(_symbols(example, shapes))
    taken = {size for node in plain.nodes() for spec in node.outputs for size in spec.shape}
    left = list(candidates)
    while left:
        try:
            comparison = _Comparison(trace, example, _unused_sizes(shapes, left, taken))
        except CannotOpenError:  # The model takes no longer inputs than the example.
            left = left[:-1]
            continue
        pinned = [axis for axis in left if not comparison.add(axis)]
        if not pinned and not comparison.is_ambiguous():
            return comparison.graph_with_free_sizes(), left
        left = [axis for axis in left if axis not in pinned] if pinned else left[:-1]
    return plain, []


class _Comparison:
    """The differences between a graph and further traces at other sizes."""

    def __init__(self, trace: Callable[[Any], Graph], example: Any, shapes: list[Shape]) -> None:
        self._trace = trace
        self._example = example
        self._shapes = shapes
        self._graph = trace(_symbols(example, shapes))
        self._nodes = self._graph.nodes()
        self._numbers = {id(node): number for number, node in enumerate(self._nodes)}
        self._changes: dict[tuple[int, str, int], list[FreeAxis]] = {}
        self._varied: set[int] = set()
        self._fixed: dict[tuple[int, int, int], int] = {
            (number, index, axis): size
            for number, node in enumerate(self._nodes)
            for index, spec in enumerate(node.outputs)
            for axis, size in enumerate(spec.shape)
        }

    def add(self, axis: FreeAxis) -> bool:
        """Compares with traces at other sizes of an axis; returns False if it can't be free."""
        size = _size(self._shapes, axis)
        others = [size + 5] if axis.is_batch else [size + 5, _LONG]
        return all(self._compare(axis, other) for other in others)

    def is_ambiguous(self) -> bool:
        """Returns True if a size that differs between batches is also that of a fixed axis."""
        return not self._varied.isdisjoint(self._fixed.values())

    def graph_with_free_sizes(self) -> Graph:
        """Returns the graph, in which operations read the sizes that differ."""
        by_node: dict[int, list[tuple[str, int, FreeAxis]]] = {}
        for (number, name, position), axes in self._changes.items():
            by_node.setdefault(number, []).append((name, position, axes[0]))
        for number, changes in by_node.items():
            _read_sizes(self._nodes[number], changes, self._graph.inputs)
        self._graph.free_sizes = frozenset(self._varied)
        return self._graph

    def _compare(self, axis: FreeAxis, size: int) -> bool:
        try:
            other = self._trace(_symbols(self._example, _with_size(self._shapes, axis, size)))
        except CannotOpenError:  # The model does not take this size.
            return False
        theirs = other.nodes()
        if [node.kind for node in self._nodes] != [node.kind for node in theirs]:
            return False
        numbers = {id(node): number for number, node in enumerate(theirs)}
        return all(
            self._compare_nodes(number, mine, node, numbers, axis)
            for number, (mine, node) in enumerate(zip(self._nodes, theirs, strict=True))
        )

    def _compare_nodes(
        self, number: int, mine: Node, other: Node, numbers: dict[int, int], axis: FreeAxis
    ) -> bool:
        self._compare_shapes(number, mine, other)
        if mine.kind == CONSTANT:
            return _are_equal(mine.content, other.content)
        if mine.operation is None:
            return True

        def named(node: Node, numbers: dict[int, int]) -> Any:
            return node.map_values(lambda value: ("value", numbers[id(value.node)], value.index))

        if not _are_equal(named(mine, self._numbers), named(other, numbers)):
            return False
        if mine.is_layer:
            return mine.operation is other.operation
        others = attributes(other.operation)
        return all(
            self._compare_attribute(number, name, value, others[name], axis)
            for name, value in attributes(mine.operation).items()
        )

    def _compare_shapes(self, number: int, mine: Node, other: Node) -> None:
        for index, (spec, their_spec) in enumerate(zip(mine.outputs, other.outputs, strict=True)):
            for axis, (size, theirs) in enumerate(zip(spec.shape, their_spec.shape, strict=True)):
                if size != theirs:
                    self._varied.add(size)
                    self._fixed.pop((number, index, axis), None)

    def _compare_attribute(
        self, number: int, name: str, mine: Any, other: Any, axis: FreeAxis
    ) -> bool:
        """Notes where a tuple of sizes differs; returns False for a difference of another kind."""
        if _are_equal(mine, other):
            return True
        if not isinstance(mine, list | tuple) or len(mine) != len(other):
            return False
        node = self._nodes[number]
        changed = [place for place, size in enumerate(mine) if size != other[place]]
        for place in changed:
            axes = self._changes.setdefault((number, name, place), [])
            if axis not in axes:
                axes.append(axis)
        places = {
            place: axes
            for (other_number, other_name, place), axes in self._changes.items()
            if (other_number, other_name) == (number, name)
        }
        # A reshape finds one size by itself, whatever it depends on.
        if node.kind == "Reshape" and -1 not in mine and len(places) == 1:
            return True
        return all(
            len(axes) == 1 and mine[place] == _size(self._shapes, axes[0])
            for place, axes in places.items()
        )


def _read_sizes(
    node: Node, changes: list[tuple[str, int, FreeAxis]], inputs: Sequence[Node]
) -> None:
    """Makes an operation read the sizes that differ between batches."""
    if node.kind == "Reshape" and len(changes) == 1 and -1 not in node.operation.newshape:
        (_, position, _) = changes[0]
        sizes = list(node.operation.newshape)
        sizes[position] = -1
        node.operation = copy.copy(node.operation)
        node.operation.newshape = tuple(sizes)
        return
    places = []
    sources = []
    for name, position, axis in changes:
        index, source_axis = axis.places[0]
        places.append((name, position, source_axis))
        sources.append(Value(inputs[index]))
    node.args, node.kwargs = (tuple(sources), node.args, node.kwargs), {}
    node.operation = ReadSizes(node.operation, places)
    node.kind = "ReadSizes"


def _symbols(example: Any, shapes: Sequence[Shape]) -> Any:
    dtypes = [keras.backend.standardize_dtype(each.dtype) for each in tree.flatten(example)]
    symbols = [keras.KerasTensor(*each) for each in zip(shapes, dtypes, strict=True)]
    return tree.pack_sequence_as(example, symbols)


def _size(shapes: Sequence[Shape], axis: FreeAxis) -> int:
    index, place = axis.places[0]
    return shapes[index][place]


def _with_size(shapes: Sequence[Shape], axis: FreeAxis, size: int) -> list[Shape]:
    """Returns shapes with another size of an axis."""
    changed = [list(shape) for shape in shapes]
    for index, place in axis.places:
        changed[index][place] = size
    return [tuple(shape) for shape in changed]


def _unused_sizes(shapes: list[Shape], axes: Sequence[FreeAxis], taken: set[int]) -> list[Shape]:
    """Returns shapes whose free sizes are near the given ones, and those of no other axis."""
    taken = set(taken)
    for axis in axes:
        size = max(2, _size(shapes, axis))
        while size in taken:
            size += 1
        taken.add(size)
        shapes = _with_size(shapes, axis, size)
    return shapes


def _are_equal(one: Any, other: Any) -> bool:
    return bool(value_key(one) == value_key(other))
