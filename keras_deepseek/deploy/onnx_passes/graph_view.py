"""A view of an ONNX graph by tensor names, with which passes find and replace nodes."""

import importlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import MissingExtraError

_MAX_SHAPE_ELEMENTS = 128
"""The largest number of elements of a weight that shapes may depend on."""


def import_package(name: str) -> Any:
    """Imports a module of the pip extra `onnx`, or raises a `MissingExtraError`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package, _, _ = name.partition(".")
        raise MissingExtraError(package, "onnx", "to export and verify ONNX") from error


def inner_graphs(node: Any) -> Iterator[Any]:
    """Yields the subgraphs of a node, in order."""
    for attribute in node.attribute:
        yield from attribute.graphs
        if attribute.HasField("g"):
            yield attribute.g


def all_nodes(graph: Any) -> Iterator[Any]:
    """Yields the nodes of a graph and of its subgraphs."""
    for node in graph.node:
        yield node
        for inner in inner_graphs(node):
            yield from all_nodes(inner)


class GraphView:
    """A model's graph indexed by tensor name: the node that makes a tensor, and its users.

    Several passes in a row share one view, as long as they change the graph only by `rewrite`.
    """

    def __init__(self, model: Any) -> None:
        self.onnx = import_package("onnx")
        self.graph = model.graph
        self.opset = next(entry.version for entry in model.opset_import if not entry.domain)
        self._model = model
        self._read()

    def _read(self) -> None:
        self._producers = {name: node for node in self.graph.node for name in node.output if name}
        self._weights = {tensor.name: tensor for tensor in self.graph.initializer}
        self._users = Counter(_used(self.graph))
        self.__dict__.pop("_values", None)

    @cached_property
    def _values(self) -> dict[str, Any]:
        graph = infer_graph(self._model)  # It is slow, and not every pass needs it.
        return {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}

    def rewrite(
        self, make_new: Callable[["GraphView", Any], list[Any] | None], *op_types: str
    ) -> int:
        """Replaces nodes of some operator types by new nodes; returns the number of replacements.

        `make_new` gets this view and a node, and returns the nodes that compute its outputs
        instead, or `None` to keep it. They are inserted after all calls.
        """
        replacements = {
            id(node): new
            for node in self.nodes(*op_types)
            if (new := make_new(self, node)) is not None
        }
        for index, node in reversed(list(enumerate(self.graph.node))):
            if id(node) in replacements:
                del self.graph.node[index]
                for new in reversed(replacements[id(node)]):
                    self.graph.node.insert(index, new)
        if drop_unused(self.graph) or replacements:
            self._read()
        return len(replacements)

    def nodes(self, *op_types: str) -> list[Any]:
        """Returns the nodes of the given operator types, in graph order."""
        return [node for node in self.graph.node if node.op_type in op_types and not node.domain]

    def producer(self, name: str, *op_types: str) -> Any:
        """Returns the node that computes a tensor if it has one of the given types, else `None`."""
        node = self._producers.get(name)
        is_one = node is not None and not node.domain and node.op_type in op_types
        return node if is_one else None

    def any_producer(self, name: str) -> Any:
        """Returns the node that computes a tensor; `None` for a graph input or a weight."""
        return self._producers.get(name)

    def constant(self, name: str) -> Array | None:
        """Returns the array of a weight or `Constant` node; `None` if a tensor is not constant."""
        if name in self._weights:
            return self.onnx.numpy_helper.to_array(self._weights[name])  # type: ignore[no-any-return]
        node = self.producer(name, "Constant")
        if node is not None and node.attribute[0].name == "value":
            return self.onnx.numpy_helper.to_array(node.attribute[0].t)  # type: ignore[no-any-return]
        return None

    def scalar(self, name: str) -> float | None:
        """Returns the value of a constant with one element; `None` for other tensors."""
        array = self.constant(name)
        if array is None or array.size != 1 or array.dtype.kind not in "fiV":
            return None
        return float(array.reshape(()))

    def shape(self, name: str) -> list[int | str | None] | None:
        """Returns a tensor's shape, `None` for unknown rank; a free size is a name or `None`."""
        value = self._values.get(name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        return [
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
            for dim in value.type.tensor_type.shape.dim
        ]

    def dtype(self, name: str) -> int:
        """Returns a tensor's ONNX element type, an integer; 0 if it is unknown."""
        value = self._values.get(name)
        return int(value.type.tensor_type.elem_type) if value is not None else 0

    def num_users(self, name: str) -> int:
        """Returns how often a tensor is used, as a node's input or a graph output."""
        return self._users[name]

    def are_only_used_within(self, nodes: Iterable[Any], last: Any) -> bool:
        """Returns True if only `nodes` and `last` use the outputs of `nodes`."""
        nodes_by_id = {id(node): node for node in nodes}
        nodes_by_id[id(last)] = last
        uses = Counter(name for node in nodes_by_id.values() for name in node.input)
        return all(
            self.num_users(name) == uses[name]
            for node in nodes_by_id.values()
            if node is not last
            for name in node.output
        )

    def add_weight(self, array: Array, like: str) -> str:
        """Adds a weight to the graph and returns its name; an equal one is reused."""
        name = f"{like}__{'x'.join(map(str, array.shape))}"
        while name in self._weights or name in self._producers:
            weight = self.constant(name) if name in self._weights else None
            if weight is not None and weight.dtype == array.dtype and np.array_equal(weight, array):
                return name
            name += "_"
        tensor = self.onnx.numpy_helper.from_array(np.array(array, order="C"), name)
        self._weights[name] = self.graph.initializer.add()
        self._weights[name].CopyFrom(tensor)
        return name

    def node(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> Any:
        """Makes an ONNX node with one output."""
        return self.onnx.helper.make_node(op_type, inputs, [output], **attributes)


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """Returns a node's attribute by name, or a default if the node lacks it."""
    from onnx.helper import get_attribute_value

    for entry in node.attribute:
        if entry.name == name:
            return get_attribute_value(entry)
    return default


def in_both_orders(node: Any) -> Iterator[tuple[str, str]]:
    """Yields the two inputs of a commutative node in both orders."""
    first, second = node.input
    yield first, second
    yield second, first


def drop_unused(graph: Any) -> bool:
    """Removes unused nodes and weights of a graph; returns True if there were any."""
    users = Counter(_used(graph))
    num_before = len(graph.node) + len(graph.initializer)
    for index, node in reversed(list(enumerate(graph.node))):  # Users come after producers.
        if not any(users[name] for name in node.output):
            users.subtract(names_read(node))
            del graph.node[index]
    for index, tensor in reversed(list(enumerate(graph.initializer))):
        if not users[tensor.name]:
            del graph.initializer[index]
    return len(graph.node) + len(graph.initializer) < num_before


def _used(graph: Any) -> Iterator[str]:
    for node in graph.node:
        yield from names_read(node)
    yield from (value.name for value in graph.output)


def names_read(node: Any) -> Iterator[str]:
    """Yields the tensors that a node and the bodies in it read, and those inside of the bodies."""
    yield from (name for name in node.input if name)
    for inner in inner_graphs(node):
        yield from _used(inner)


def infer_graph(model: Any) -> Any:
    """Returns a copy of a graph with inferred types and shapes, those of subgraphs included.

    Large weights become inputs, so that they are not copied.
    """
    onnx = import_package("onnx")
    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = "light"
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        if math.prod(tensor.dims) <= _MAX_SHAPE_ELEMENTS:
            graph.initializer.add().CopyFrom(tensor)
            graph.value_info.append(value)
        else:
            graph.input.append(value)
    return onnx.shape_inference.infer_shapes(light, data_prop=True).graph
