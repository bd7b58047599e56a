"""Comparison of the traces of a model at several sizes, node by node."""

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_deepseek.graph.ir import CONSTANT, Graph, Node, Value, attributes, value_key
from keras_deepseek.graph.read_sizes import STRUCTURES, parts_of, rebuild
from keras_deepseek.graph.size_expressions import Size, ValueAxis
from keras_deepseek.graph.size_fitting import SizeFinder


class DifferentError(Exception):
    """A difference between traces in more than sizes."""


class CollisionError(DifferentError):
    """A size that both a free and a fixed axis have."""


def _node_key(node: Node, numbers: dict[int, int]) -> Any:
    """Returns the properties of a node that sizes must not change."""
    shape = node.spec.shape if node.kind == CONSTANT else None
    layer = node.operation if node.is_layer else node.layer
    specs = [(len(spec.shape), spec.dtype) for spec in node.outputs]
    values = [(numbers[id(value.node)], value.index) for value in node.values()]
    return node.kind, shape, id(layer) if node.is_layer else layer, specs, values


def check_nodes(graph: Graph, other: Graph, where: str) -> None:
    """Raises a `DifferentError` if two traces differ in more than numbers."""
    nodes, others = list(graph.all_nodes()), list(other.all_nodes())
    keys: list[list[Any]] = []
    for trace in (nodes, others):
        numbers = {id(node): number for number, node in enumerate(trace)}
        keys.append([_node_key(node, numbers) for node in trace])
    if keys[0] != keys[1]:
        pairs = itertools.zip_longest(*keys)
        number = next(n for n, (first, second) in enumerate(pairs) if first != second)
        longer = others if number < len(others) else nodes
        node, does = longer[number], "computes something else"
        if node.kind == CONSTANT:
            does = "makes another constant, by NumPy or of random numbers,"
            readers = (reader for reader in longer if Value(node) in reader.values())
            node = next(readers, node)
        name = f"the model in {node.layer!r}" if node.layer else "the model"
        raise DifferentError(f"{name} {does} with {where}, at {node.kind}")


def check_collisions(
    graphs: Sequence[Graph], checks: Collection[int] = ()
) -> tuple[frozenset[int], list[ValueAxis]]:
    """Returns the sizes in the first graph that differ in others, which no fixed axis may have.

    Axes that differ in `checks` alone, the numbers of traces at unusual sizes, such as the last 4
    steps of 1, may have the size of a fixed axis. They are returned too.
    """
    varied: set[int] = set()
    fixed: set[int] = set()
    at_checks: list[ValueAxis] = []
    for nodes in zip(*(graph.all_nodes() for graph in graphs), strict=True):
        for axis, shape in _output_axes(nodes):
            if None in shape:
                kind = nodes[0].kind
                raise DifferentError(f"a size of the result of {kind} depends on the data")
            sizes = list(map(int, shape))
            if len(set(sizes)) == 1:
                fixed.add(sizes[0])
            elif len({size for n, size in enumerate(sizes) if n not in checks}) == 1:
                at_checks.append(axis)
            else:
                varied.add(sizes[0])
    if not varied.isdisjoint(fixed):
        raise CollisionError(f"a free and a fixed axis have the size {min(varied & fixed)}")
    sizes_at_checks = {int(axis.value.shape[axis.axis]) for axis in at_checks}
    varied |= sizes_at_checks - fixed
    return frozenset(varied), [
        axis for axis in at_checks if int(axis.value.shape[axis.axis]) in fixed
    ]


def _output_axes(nodes: Sequence[Node]) -> Iterator[tuple[ValueAxis, tuple[Any, ...]]]:
    """Yields each axis of the outputs of a node, with its size in each trace."""
    for index, specs in enumerate(zip(*(node.outputs for node in nodes), strict=True)):
        for axis, sizes in enumerate(zip(*(spec.shape for spec in specs), strict=True)):
            yield ValueAxis(Value(nodes[0], index), axis), sizes


class Merger:
    """Finds the numbers of a graph that differ in other traces of the same nodes."""

    def __init__(self, finder: SizeFinder, num_graphs: int) -> None:
        self._finder = finder
        self._numbers: list[dict[int, int]] = [{} for _ in range(num_graphs)]
        self._layer = ""
        self.changes: list[Callable[[], None]] = []
        """Functions that write the `Size`s into the first graph."""

    def merge_graphs(self, graphs: Sequence[Graph], *, is_inner: bool = False) -> None:
        """Finds the changes of the nodes of a graph, or of one inside an operation."""
        for nodes in zip(*(graph.nodes() for graph in graphs), strict=True):
            for numbers, node in zip(self._numbers, nodes, strict=True):
                numbers[id(node)] = len(numbers)
            self._layer = nodes[0].layer
            self._merge_nodes(nodes)
            # A value inside a loop has no size outside.
            for axis, shape in () if is_inner else _output_axes(nodes):
                sizes = tuple(map(int, shape))
                if len(set(sizes)) > 1:
                    self._finder.add_axis(sizes, axis)

    def _merge_nodes(self, nodes: Sequence[Node]) -> None:
        node = nodes[0]
        args = self._merge([other.args for other in nodes])
        kwargs = self._merge([other.kwargs for other in nodes])
        content, operation, kind = node.content, node.operation, node.kind
        if kind == CONSTANT:
            content = self._merge([other.content for other in nodes])
        elif operation is not None and not node.is_layer:
            own = attributes(operation)
            merged = self._merge([attributes(other.operation) for other in nodes])
            if any(merged[name] is not value for name, value in own.items()):
                operation = object.__new__(type(operation))  # Keras would copy it by its config.
                vars(operation).update(vars(node.operation) | merged)
            if kind == "Create" and not _has_sizes(args):
                content, operation, kind, args = operation.call(*args), None, CONSTANT, ()

        def change() -> None:
            node.args, node.kwargs, node.content = args, kwargs, content
            node.operation, node.kind = operation, kind

        self.changes.append(change)

    def _merge(self, structures: Sequence[Any]) -> Any:
        """Returns the first structure, with a `Size` for each number that differs in others."""
        first = structures[0]
        if isinstance(first, Value | bool | str | None):
            self._check(self._keys(structures), "reads other values or settings")
            return first
        if isinstance(first, Graph):
            self.merge_graphs(structures, is_inner=True)
            return first
        if all(isinstance(number, int | np.integer) for number in structures):
            return self._merge_numbers(structures)
        self._check([type(structure) for structure in structures], "has other arguments")
        names = [[name for name, _ in parts_of(structure)] for structure in structures]
        if not isinstance(first, STRUCTURES):
            return self._merge_contents(structures)
        self._check(names, "has other names or longer lists")
        columns = zip(*map(parts_of, structures), strict=True)
        merged = [self._merge([part for _, part in column]) for column in columns]
        pairs = zip(merged, parts_of(first), strict=True)
        if all(part is original for part, (_, original) in pairs):
            return first
        return rebuild(first, merged)

    def _merge_numbers(self, numbers: Sequence[Any]) -> Any:
        first = numbers[0]
        is_fixed = len(set(map(int, numbers))) == 1
        if is_fixed and not isinstance(first, Size):
            return first
        size = self._finder.find(numbers)
        if size is None and is_fixed:
            return int(first)
        if size is None:
            self._refuse(f"uses a number that no expression gives: {self._finder.show(numbers)}")
        return size

    def _merge_contents(self, structures: Sequence[Any]) -> Any:
        """Merges tensors and objects. A scalar tensor may hold a size."""
        first = structures[0]
        if len({value_key(structure) for structure in structures}) == 1:
            return first
        if callable(first) and all(other == first for other in structures):
            return first  # The same method, of the same object.
        if isinstance(first, float):
            self._refuse("computes with a float that depends on a size")
        if not (isinstance(first, np.ndarray) or keras.ops.is_tensor(first)):
            self._refuse(f"holds an object that differs, of the class {type(first).__name__}")
        arrays = [np.asarray(keras.ops.convert_to_numpy(tensor)) for tensor in structures]
        if any(array.ndim or array.dtype.kind not in "iuf" for array in arrays):
            self._refuse("makes another constant")
        numbers = [int(array) for array in arrays]
        if any(number != array for number, array in zip(numbers, arrays, strict=True)):
            self._refuse("makes another constant")
        return self._merge_numbers(numbers)

    def _keys(self, structures: Sequence[Any]) -> list[Any]:
        return [
            (numbers[id(part.node)], part.index) if isinstance(part, Value) else (type(part), part)
            for numbers, part in zip(self._numbers, structures, strict=True)
        ]

    def _check(self, keys: Sequence[Any], text: str) -> None:
        if any(key != keys[0] for key in keys):
            self._refuse(f"{text} at other sizes")

    def _refuse(self, text: str) -> None:
        name = f"layer {self._layer!r}" if self._layer else "the model"
        raise DifferentError(f"{name} {text}")


def _has_sizes(structure: Any) -> bool:
    return any(isinstance(part, Size) for part in tree.flatten(structure))
