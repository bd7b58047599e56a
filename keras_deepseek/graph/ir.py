"""The graph of a model: nodes of Keras operations, whole layers, inputs, weights and constants."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

Shape = tuple[int, ...]

INPUT, WEIGHT, CONSTANT = "input", "weight", "constant"
"""The kinds of nodes that compute nothing."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """The shape and dtype of a value. The shape holds the sizes at which the model was traced."""

    shape: Shape
    dtype: str


@dataclasses.dataclass(eq=False, slots=True)
class Node:
    """One step of a graph. Its args and kwargs may hold `Value`s, at any depth.

    Args:
        kind: `"input"`, `"weight"` or `"constant"`, else the class name of the operation or layer,
            or the name of a method of it whose code is not known.
        operation: The Keras operation; a layer is one that was kept whole.
        layer: The path of the layer that made the node, for reports.
        content: The variable of a weight, or the tensor of a constant.
    """

    kind: str
    outputs: list[Spec]
    operation: Any = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    layer: str = ""
    content: Any = None

    @property
    def is_layer(self) -> bool:
        """True if the node is a whole layer."""
        return isinstance(self.operation, keras.Layer)

    @property
    def graphs(self) -> tuple["Graph", ...]:
        """The graphs inside the operation."""
        return self.operation.graphs if isinstance(self.operation, GraphOperation) else ()

    @property
    def may_have_state(self) -> bool:
        """True for a whole layer, and for an operation whose code is not known."""
        return self.is_layer or "." in self.kind

    @property
    def spec(self) -> Spec:
        """The shape and dtype of the only, or first, output."""
        return self.outputs[0]

    def values(self) -> list["Value"]:
        """Returns the values that the node reads, in order, with repetitions."""
        values: list[Value] = []
        self.map_values(values.append)
        return values

    def map_values(self, function: Callable[["Value"], Any]) -> tuple[Any, dict[str, Any]]:
        """Returns the args and kwargs with `function(value)` in place of each value."""

        def apply(structure: Any) -> Any:  # `keras.tree` is many times slower on PyTorch.
            if isinstance(structure, Value):
                return function(structure)
            if isinstance(structure, dict):
                return {name: apply(argument) for name, argument in structure.items()}
            if type(structure) in (list, tuple):
                return type(structure)(map(apply, structure))
            if isinstance(structure, tuple):  # A named one.
                return type(structure)(*map(apply, structure))
            return structure

        return apply(self.args), apply(self.kwargs)


@dataclasses.dataclass(frozen=True)
class Value:
    """One output of a node. Two `Value`s are equal if they are the same output."""

    node: Node
    index: int = 0

    @property
    def shape(self) -> Shape:
        """The shape at which the model was traced."""
        return self.node.outputs[self.index].shape

    @property
    def dtype(self) -> str:
        """The dtype."""
        return self.node.outputs[self.index].dtype


@dataclasses.dataclass(eq=False)
class Graph:
    """A traced model.

    Args:
        inputs: The input nodes, in the order of the model's flattened inputs.
        outputs: The model's flattened outputs.
        masks: The Keras mask of each output, or `None`. Losses and metrics read it.
        structure: The nested structure of the outputs.
        leaves: The layers that were kept whole, by path.
        free_sizes: The sizes in shapes that differ between batches, such as the batch size. No
            other dimension of the graph has one of these sizes.
        traced: The shapes of the inputs at which the model was traced to free its sizes.
    """

    inputs: list[Node]
    outputs: list[Value]
    masks: list[Value | None]
    structure: Any
    leaves: dict[str, "Leaf"]
    free_sizes: frozenset[int] = frozenset()
    traced: Sequence[Sequence[Shape]] = ()

    def roots(self) -> list[Value]:
        """Returns the outputs and their masks."""
        return [*self.outputs, *(mask for mask in self.masks if mask is not None)]

    def nodes(self) -> list[Node]:
        """Returns the nodes that the outputs need; each comes after those whose values it reads."""
        finished: dict[int, Node] = {}
        stack = [(value.node, False) for value in reversed(self.roots())]
        entered: set[int] = set()
        while stack:
            node, has_inputs = stack.pop()
            if has_inputs:
                finished[id(node)] = node
            elif id(node) not in entered:
                entered.add(id(node))
                stack.append((node, True))
                stack += [(value.node, False) for value in reversed(node.values())]
        return list(finished.values())

    def all_nodes(self) -> Iterator[Node]:
        """Yields the nodes of this graph; those inside an operation come before it."""
        for node in self.nodes():
            for inner in node.graphs:
                yield from inner.all_nodes()
            yield node

    def users(self) -> dict[Value, list[Node | None]]:
        """Returns the readers of each value, with repetitions; `None` stands for the caller."""
        users: dict[Value, list[Node | None]] = {}
        for node in self.nodes():
            for value in node.values():
                users.setdefault(value, []).append(node)
        for value in self.roots():
            users.setdefault(value, []).append(None)
        return users

    def replace(self, replacements: Mapping[Value, Value]) -> None:
        """Replaces values by others everywhere, all at the same time."""
        if not replacements:
            return

        def resolve(value: Value) -> Value:
            while value in replacements:
                value = replacements[value]
            return value

        self.outputs = [resolve(value) for value in self.outputs]
        self.masks = [None if mask is None else resolve(mask) for mask in self.masks]
        visited: set[int] = set()
        waiting = [value.node for value in self.roots()]
        while waiting:
            node = waiting.pop()
            if id(node) not in visited:
                visited.add(id(node))
                node.args, node.kwargs = node.map_values(resolve)
                waiting += [value.node for value in node.values()]


class GraphOperation(keras.Operation):
    """An operation that runs graphs, such as a loop. Their free sizes are those around them."""

    def __init__(self, graphs: Sequence[Graph]) -> None:
        super().__init__()
        self.graphs = tuple(graphs)

    def __copy__(self) -> "GraphOperation":
        copied: GraphOperation = object.__new__(type(self))  # Keras would make it by its config.
        copied.__dict__.update(self.__dict__)
        return copied


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A layer that was kept whole, and the reason."""

    layer_class: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Rewrite:
    """One change that a pass made: the layers that it touched, and a sentence about it."""

    layers: tuple[str, ...]
    text: str


Changes = Iterator[tuple[Node, Sequence[Value], Rewrite | None]]
"""Nodes, the values to put in place of their outputs, and what to report of that."""

Pass = Callable[[Graph, bool], Changes]
"""A function that finds changes of a graph, given `training`. It changes nothing itself."""


def count_operations(graph: Graph) -> int:
    """Returns the number of operations and whole layers."""
    return sum(node.operation is not None for node in graph.nodes())


def attributes(operation: keras.Operation) -> dict[str, Any]:
    """Returns the attributes of an operation that may change its result."""
    hidden = {"name", "_inbound_nodes", "_outbound_nodes", "_remat_mode", "_auto_config", "_lock"}
    hidden |= {"_parent_path", "_tracker"}
    return {name: value for name, value in vars(operation).items() if name not in hidden}


def resize_reshape(reshape: Any, position: int, size: int) -> Any:
    """Returns a `Reshape` operation with another size in its new shape."""
    shape = list(reshape.newshape)
    shape[position] = size
    return type(reshape)(tuple(shape), name=reshape.name)


def constant_of(tensor: Any) -> Value:
    """Returns the value of a constant tensor."""
    spec = Spec(tuple(tensor.shape), keras.backend.standardize_dtype(tensor.dtype))
    return Value(Node(CONSTANT, [spec], content=tensor))


def value_key(value: Any) -> Any:  # noqa: PLR0911 - one line a type
    """Returns a hashable key, equal for equal numbers, texts, tensors and structures of them."""
    if isinstance(value, Value):
        return "value", value
    if isinstance(value, list | tuple):
        return type(value).__name__, *map(value_key, value)
    if isinstance(value, dict):
        return "dict", *((name, value_key(value[name])) for name in sorted(value))
    if isinstance(value, slice):
        return "slice", value.start, value.stop, value.step
    if value is None or isinstance(value, bool | int | float | str):
        return type(value).__name__, value  # 1, 1.0 and True are equal in Python.
    if isinstance(value, np.ndarray) or keras.ops.is_tensor(value):
        array = np.asarray(keras.ops.convert_to_numpy(value))
        return "array", str(value.dtype), array.shape, array.tobytes()
    if isinstance(value, keras.Operation) and not isinstance(value, keras.Layer):
        return type(value), value_key(attributes(value))
    return "object", id(value)
