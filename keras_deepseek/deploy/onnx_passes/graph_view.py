"""Who makes and who uses each tensor of a graph, and how a pass replaces nodes by what it finds."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.deploy.onnx_passes.import_package import import_package
from keras_deepseek.deploy.onnx_passes.inner_graphs import inner_graphs, replace_inputs
from keras_deepseek.deploy.onnx_passes.save import is_on_disk

_HALF_BYTES = 2
_SMALL = 128
"""Numbers of a weight that shapes may depend on."""


class GraphView:
    """A model's outer graph by its tensors: as it was when the view was made, or last rewritten.

    Passes after each other share one, as long as they change the graph by `rewrite` alone.

    Args:
        model: `onnx.ModelProto`.
    """

    def __init__(self, model: Any) -> None:
        self.onnx = import_package("onnx")
        self.graph = model.graph
        self.opset = next(each.version for each in model.opset_import if not each.domain)
        self._model = model
        self._read()

    def _read(self) -> None:
        self._producers = {name: node for node in self.graph.node for name in node.output if name}
        self._weights = {tensor.name: tensor for tensor in self.graph.initializer}
        self._users = Counter(_used(self.graph))
        self.__dict__.pop("_values", None)

    @cached_property
    def _values(self) -> dict[str, Any]:
        return _infer(self.onnx, self._model)  # It takes long, and not every pass asks.

    def rewrite(
        self,
        make_new: Callable[["GraphView", Any], list[Any] | None],
        *op_types: str,
        last_first: bool = False,
    ) -> int:
        """Puts new nodes where those of some types stood, and leaves out what is then unused.

        Args:
            make_new: Returns, for this view and a node, the nodes that make its outputs instead,
                or `None` where it stays. All of them are put in place at the end.
            *op_types: string. The types.
            last_first: boolean. Whether it is asked about the last node first. Defaults to `False`.

        Returns:
            How many nodes were replaced.
        """
        nodes = self.nodes(*op_types)
        made = {
            id(node): new
            for node in (reversed(nodes) if last_first else nodes)
            if (new := make_new(self, node)) is not None
        }
        for index, node in reversed(list(enumerate(self.graph.node))):
            if id(node) in made:
                del self.graph.node[index]
                for new in reversed(made[id(node)]):
                    self.graph.node.insert(index, new)
        if drop_unused(self.graph) or made:
            self._read()
        return len(made)

    def nodes(self, *op_types: str) -> list[Any]:
        """Returns the nodes of these types, in their order."""
        return [node for node in self.graph.node if node.op_type in op_types and not node.domain]

    def producer(self, name: str, *op_types: str) -> Any:
        """Returns the node that makes a tensor, if it is of one of these types, or `None`."""
        node = self._producers.get(name)
        is_one = node is not None and not node.domain and node.op_type in op_types
        return node if is_one else None

    def any_producer(self, name: str) -> Any:
        """Returns the node that makes a tensor, or `None` for an input or a weight."""
        return self._producers.get(name)

    def constant(self, name: str) -> Array | None:
        """Returns the values of a tensor that no input changes, or `None`."""
        if name in self._weights and not is_on_disk(self._weights[name]):
            return self.onnx.numpy_helper.to_array(self._weights[name])  # type: ignore[no-any-return]
        node = self.producer(name, "Constant")
        if node is not None and node.attribute[0].name == "value":
            return self.onnx.numpy_helper.to_array(node.attribute[0].t)  # type: ignore[no-any-return]
        return None

    def scalar(self, name: str) -> float | None:
        """Returns the one number that a tensor holds, or `None` where it is something else."""
        array = self.constant(name)
        if array is None or array.size != 1 or array.dtype.kind not in "fiV":
            return None
        return float(array.reshape(()))

    def is_number(self, name: str, expected: float) -> bool:
        """Returns whether a tensor is this one number, as near as its dtype tells."""
        number, array = self.scalar(name), self.constant(name)
        if number is None or array is None:
            return False
        nearness = 1e-6 if array.dtype.itemsize > _HALF_BYTES else 1e-3
        return bool(np.isclose(number, expected, rtol=nearness, atol=0.0))

    def shape(self, name: str) -> list[int | str | None] | None:
        """Returns a tensor's sizes, a text or `None` for a free one; `None` for an unknown rank."""
        value = self._values.get(name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        return [
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
            for dim in value.type.tensor_type.shape.dim
        ]

    def dtype(self, name: str) -> int:
        """Returns a tensor's type as ONNX numbers it; 0 where it is not known."""
        value = self._values.get(name)
        return int(value.type.tensor_type.elem_type) if value is not None else 0

    def num_users(self, name: str) -> int:
        """Returns how often a tensor is used, as an output of the graph among others."""
        return self._users[name]

    def are_only_used_within(self, nodes: Iterable[Any], last: Any) -> bool:
        """Returns whether nobody uses what some nodes make, but they and, of the last, anybody."""
        own = {id(node): node for node in nodes}
        own[id(last)] = last
        uses = Counter(name for node in own.values() for name in node.input)
        return all(
            self.num_users(name) == uses[name]
            for node in own.values()
            if node is not last
            for name in node.output
        )

    def add_weight(self, array: Array, like: str) -> str:
        """Adds a constant and returns its name; it may be asked for several times."""
        name = f"{like}__{'x'.join(map(str, array.shape))}"
        while name in self._weights or name in self._producers:
            if name in self._weights and _is_same(self.constant(name), array):
                return name
            name += "_"
        tensor = self.onnx.numpy_helper.from_array(np.array(array, order="C"), name)
        self._weights[name] = self.graph.initializer.add()
        self._weights[name].CopyFrom(tensor)
        return name

    def replace_uses(self, name: str, other: str) -> list[Any]:
        """Makes all who use a tensor use another of the same values.

        Returns:
            The nodes that are left to make it: one where it is an output, which keeps its name.
        """
        replace_inputs(self.graph, lambda each: other if each == name else each)
        is_output = any(value.name == name for value in self.graph.output)
        return [self.node("Identity", [other], name)] if is_output else []

    def node(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> Any:
        """Returns a new node."""
        return self.onnx.helper.make_node(op_type, inputs, [output], **attributes)


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """Returns an attribute of a node, or what stands for one that it lacks."""
    from onnx.helper import get_attribute_value

    for each in node.attribute:
        if each.name == name:
            return get_attribute_value(each)
    return default


def in_both_orders(node: Any) -> Iterator[tuple[str, str]]:
    """Yields the two inputs of a sum or product in the one order and the other."""
    first, second = node.input
    yield first, second
    yield second, first


def drop_unused(graph: Any) -> bool:
    """Leaves out the nodes and weights that nobody uses, and returns whether there were any."""
    users = Counter(_used(graph))
    num_before = len(graph.node) + len(graph.initializer)
    for index, node in reversed(list(enumerate(graph.node))):  # Who uses it stands behind it.
        if not any(users[name] for name in node.output):
            users.subtract(_used_by(node))
            del graph.node[index]
    for index, tensor in reversed(list(enumerate(graph.initializer))):
        if not users[tensor.name]:
            del graph.initializer[index]
    return len(graph.node) + len(graph.initializer) < num_before


def _used(graph: Any) -> Iterator[str]:
    for node in graph.node:
        yield from _used_by(node)
    yield from (value.name for value in graph.output)


def _used_by(node: Any) -> Iterator[str]:
    yield from (name for name in node.input if name)
    for inner in inner_graphs(node):
        yield from _used(inner)


def _is_same(left: Array | None, right: Array) -> bool:
    return left is not None and left.dtype == right.dtype and np.array_equal(left, right)


def _infer(onnx: Any, model: Any) -> dict[str, Any]:
    graph = infer_graph(onnx, model)
    return {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}


def infer_graph(onnx: Any, model: Any) -> Any:
    """Returns a graph of the same nodes with what is known of the tensors, here and within them.

    Large weights are left at home on the way.

    Args:
        onnx: The module.
        model: `onnx.ModelProto`.
    """
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
        if math.prod(tensor.dims) <= _SMALL:
            graph.initializer.add().CopyFrom(tensor)
            graph.value_info.append(value)
        else:
            graph.input.append(value)
    return onnx.shape_inference.infer_shapes(light, data_prop=True).graph
