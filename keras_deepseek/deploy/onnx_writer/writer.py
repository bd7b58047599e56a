"""The nodes and constants of an ONNX graph, written operation by operation from a program.

Handlers, in `table/` and `layers/`, write one kind of operation or layer each. A `Writer` gives
them names of tensors, constants and sizes. A tensor may stand in two layouts: as Keras has it, or
with the channels first, as ONNX's convolutions take it. So no pass has to move transpositions.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.known_packages import is_known
from keras_deepseek.deploy.failure_reason import failure_reason
from keras_deepseek.deploy.onnx_passes.graph_view import import_package
from keras_deepseek.errors import ExportError, NotSupportedError
from keras_deepseek.graph.ir import CONSTANT, WEIGHT, Graph, Node, Value
from keras_deepseek.graph.size_expressions import InputAxis, Size, ValueAxis

Handler = TypeVar("Handler", bound=Callable[..., Any])
"""A function `(writer, node, *args, **kwargs)`, with the arguments of the operation.

It returns the name of the output's tensor, a list of names, or `None` if it called `put` itself."""


class Entry(NamedTuple):
    """The handler of an operation, and whom it follows where Keras's backends differ."""

    handler: Callable[..., Any]
    follows: str


TABLE: dict[str, Entry] = {}
LAYERS: dict[str, Entry] = {}
"""The entries by class name: of operations, and of layers that a trace keeps whole."""

OPERATOR_OPSETS = {"Gelu": 20, "RMSNorm": 23}
"""The opset from which on an operation is one operator of ONNX, where that is not the first."""

TYPES = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "bool": 9,
    "float16": 10, "float64": 11, "uint32": 12, "uint64": 13, "bfloat16": 16,
}  # fmt: skip
"""ONNX's element types by the name of a dtype."""

LAST, FIRST = "last", "first"
"""The layouts of a tensor: as Keras has it, and with the last axis moved to axis 1."""

_UNCHANGED = ("ConvertToTensor", "Cast", "StopGradient")
"""Operations that keep a constant, in a dtype of their own."""
_SMALL = 4096
"""Bytes up to which a constant is compared as a whole."""
_DIVISION = "floordiv"
_ARITHMETIC = {"add": "Add", "sub": "Sub", "mul": "Mul", "mod": "Mod"}


class NoEntryError(NotSupportedError):
    """An error for an operation, or a case of one, that the table can't write."""

    def __init__(self, text: str, where: str = "") -> None:
        super().__init__(f"{where} can't be written as ONNX: {text}" if where else text)
        self.where = where


def handles(
    *kinds: str, follows: str | Mapping[str, str] = "", table: dict[str, Entry] = TABLE
) -> Callable[[Handler], Handler]:
    """Registers a handler by class names: of operations, or in `LAYERS` of layers.

    `follows` says, for all or by class name, whom the file follows where Keras's backends differ.
    """

    def register(function: Handler) -> Handler:
        for kind in kinds:
            phrase = follows if isinstance(follows, str) else follows.get(kind, "")
            table[kind] = Entry(function, phrase)
        return function

    return register


def to_first(rank: int) -> list[int]:
    """Returns the permutation from Keras's layout to channels first."""
    return [0, rank - 1, *range(1, rank - 1)]


def to_last(rank: int) -> list[int]:
    """Returns the permutation from channels first to Keras's layout."""
    return [0, *range(2, rank), 1]


def numpy_dtype(dtype: str) -> Any:
    """Returns the NumPy dtype of a name; NumPy alone has no bfloat16."""
    if dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(dtype)


class Constants:
    """The constants of a file by name. Equal ones have one name."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        self._same: dict[Any, list[str]] = {}

    def add(self, array: Array, layer: str) -> str:
        """Returns the name of an array, named after the layer that needs it first."""
        content = array.reshape(-1).view(np.uint8)
        step = 1 if content.size <= _SMALL else content.size // 256
        names = self._same.setdefault(
            (str(array.dtype), array.shape, content[::step].tobytes()), []
        )
        for name in names:
            if step == 1 or np.array_equal(self.arrays[name].reshape(-1).view(np.uint8), content):
                return name
        names.append(f"{layer}/constant_{len(self.arrays)}")
        self.arrays[names[-1]] = array
        return names[-1]


class Writer:
    """The nodes of one ONNX graph: that of a file, or of a body in it.

    Args:
        graph: The traced program.
        opset: The opset of the file.
        inputs: The name of each of the graph's inputs.
        outer: The writer of the graph around a body. A body may read the values of that.
        prefix: The beginning of all names in a body.
        shares_sizes: True for a body whose `Size`s are of the axes of the graph around.
    """

    def __init__(
        self,
        graph: Graph,
        opset: int,
        inputs: Sequence[str] = (),
        outer: "Writer | None" = None,
        prefix: str = "",
        shares_sizes: bool = False,
    ) -> None:
        self.graph, self.opset, self.outer, self.prefix = graph, opset, outer, prefix
        self._shares_sizes = shares_sizes
        self.layer = ""
        self.nodes: list[Any] = []
        self.constants: Constants = Constants() if outer is None else outer.constants
        self._names: dict[Value, dict[str, str]] = {}
        self._arrays: dict[Value, Array | None] = {}
        self._cache: dict[Any, str] = {}
        self._num_nodes = self._num_bodies = 0
        self._helper = import_package("onnx.helper")
        self._free_axes: dict[int, tuple[str, int]] = {}  # By the size in the trace.
        for node, name in zip(graph.inputs, inputs, strict=False):
            self.put(Value(node), name)
            for axis, size in enumerate(node.spec.shape):
                if size in graph.free_sizes:
                    self._free_axes.setdefault(int(size), (name, axis))

    # Nodes and constants.

    def add(self, kind: str, *inputs: str | None, **attributes: Any) -> str:
        """Adds a node of one output, and returns its name. `None` leaves an attribute out."""
        return self.add_several(kind, *inputs, outputs=1, **attributes)[0]

    def add_several(
        self, kind: str, *inputs: str | None, outputs: int, **attributes: Any
    ) -> list[str]:
        """Adds a node, and returns the names of its outputs.

        Inputs and attributes of `None` are left out.
        """
        label = f"{self.prefix}{self.layer}/{kind}_{self._num_nodes}"
        self._num_nodes += 1
        names = [label] if outputs == 1 else [f"{label}:{index}" for index in range(outputs)]
        required = list(inputs)
        while required and required[-1] is None:
            required.pop()
        node = self._helper.make_node(kind, [name or "" for name in required], names, name=label)
        for name, value in attributes.items():
            if value is not None:
                node.attribute.append(self._helper.make_attribute(name, value))
        self.nodes.append(node)
        return names

    def constant(self, array: Any, dtype: str | None = None) -> str:
        """Returns the name of an array in the file, in its own dtype or another."""
        values = np.asarray(array, None if dtype is None else numpy_dtype(dtype), order="C")
        return self.constants.add(values, self.layer)

    def take_constants(self) -> dict[str, Array]:
        """Returns all constants by name, and keeps no other arrays in memory."""
        self._arrays.clear()
        return self.constants.arrays

    def integers(self, *numbers: int) -> str:
        """Returns the name of a one-dimensional tensor of int64."""
        return self.constant(np.array(numbers, np.int64))

    def cached(self, key: Any, make: Callable[[], str]) -> str:
        """Returns what was written for a key before, or writes it."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    # Values.

    def array(self, value: Any) -> Array | None:
        """Returns the array of a weight or a constant, else `None`."""
        if not isinstance(value, Value):
            return np.asarray(value)
        if value not in self._arrays:
            array = self._read_array(value.node)
            if array is not None and str(array.dtype) != value.dtype:
                array = array.astype(numpy_dtype(value.dtype))
            self._arrays[value] = array
        return self._arrays[value]

    def _read_array(self, node: Node) -> Array | None:
        if node.kind in _UNCHANGED and node.args and isinstance(node.args[0], Value):
            return self.array(node.args[0])
        if node.operation is not None or node.kind not in (CONSTANT, WEIGHT):
            return None
        content = node.content.value if node.kind == WEIGHT else node.content
        if isinstance(content, Size):
            return None
        return np.asarray(keras.ops.convert_to_numpy(content))

    def has(self, value: Value) -> bool:
        """Returns True if the tensor of a value was written, here or in a graph around."""
        return value in self._names or (self.outer is not None and self.outer.has(value))

    def put(self, value: Value, name: str, layout: str = LAST) -> None:
        """Records the name of a value's tensor in a layout."""
        self._names.setdefault(value, {})[layout] = name

    def put_captured(self, value: Value, outer_value: Value) -> None:
        """Records that an input of a body is a value of the graph around."""
        assert self.outer is not None
        self._names[value] = dict(self.outer.layout_names(outer_value))
        self._arrays[value] = self.outer.array(outer_value)

    def layouts(self, value: Any) -> Sequence[str]:
        """Returns the layouts in which the tensor of a value stands."""
        if isinstance(value, Value) and self.has(value):
            return tuple(self.layout_names(value))
        return (LAST,)

    def layout_names(self, value: Value) -> dict[str, str]:
        """Returns the names of a value's tensor by layout."""
        if value not in self._names:
            if self.outer is not None and self.outer.has(value):
                return self.outer.layout_names(value)
            self.put(value, self._write_constant(value))
        return self._names[value]

    def name(self, value: Value, layout: str = LAST) -> str:
        """Returns the name of a value's tensor in a layout, into which it is brought if needed."""
        if value not in self._names and self.outer is not None and self.outer.has(value):
            return self.outer.name(value, layout)
        names = self.layout_names(value)
        if layout not in names:
            order = (to_first if layout == FIRST else to_last)(len(value.shape))
            array = self.array(value)
            if array is not None:
                names[layout] = self.constant(array.transpose(order))
            else:
                names[layout] = self.add("Transpose", next(iter(names.values())), perm=order)
        return names[layout]

    def _write_constant(self, value: Value) -> str:
        array = self.array(value)
        if array is not None:
            return self.constant(array)
        if isinstance(value.node.content, Size):
            return self.tensor(value.node.content, value.dtype)
        raise NoEntryError(f"it reads the {value.node.kind} of {_where(value.node)} from outside")

    def cast(self, name: str, dtype: str, to: str) -> str:
        """Casts a tensor from one dtype to another."""
        if dtype == to:
            return name
        return self.cached(("cast", name, to), lambda: self.add("Cast", name, to=TYPES[to]))

    def tensor(self, argument: Any, dtype: str | None = None) -> str:
        """Returns the name of an argument in a dtype: a value, number, array, size, or a list."""
        if isinstance(argument, Value):
            array = self.array(argument)
            if array is not None and dtype not in (None, argument.dtype):
                return self.constant(array, dtype)
            name = self.name(argument)
            return name if dtype is None else self.cast(name, argument.dtype, dtype)
        if isinstance(argument, Size):
            scalar = self.add("Squeeze", self.size(argument), self.integers(0))
            return self.cast(scalar, "int64", dtype or "int32")
        if isinstance(argument, list | tuple) and any(
            isinstance(part, Value | Size) for part in argument
        ):
            parts = [
                self.add("Unsqueeze", self.tensor(part, dtype), self.integers(0))
                for part in argument
            ]
            return self.add("Concat", *parts, axis=0)
        is_tensor = keras.ops.is_tensor(argument)
        return self.constant(keras.ops.convert_to_numpy(argument) if is_tensor else argument, dtype)

    # Sizes.

    def is_free(self, size: Any) -> bool:
        """Returns True if a size, as the trace has it, differs between batches."""
        return isinstance(size, Size) or int(size) in self.graph.free_sizes

    def axis_size(self, value: Value, axis: int) -> int | str:
        """Returns the size of an axis: an int, or the name of a tensor of shape [1]."""
        axis %= len(value.shape)
        size = value.shape[axis]
        if not self.is_free(size):
            return int(size)
        if not isinstance(size, Size) and size in self._free_axes:
            return self.shape_of(*self._free_axes[size])
        names = self.layout_names(value)
        if LAST in names:
            return self.shape_of(names[LAST], axis)
        return self.shape_of(names[FIRST], to_first(len(value.shape)).index(axis))

    def sizes_of(self, value: Value) -> list[int | str]:
        """Returns the sizes of all axes of a value."""
        return [self.axis_size(value, axis) for axis in range(len(value.shape))]

    def shape_of(self, name: str, axis: int) -> str:
        """Returns the name of a tensor of shape [1] with a size of a tensor."""
        return self.cached(
            ("size", name, axis), lambda: self.add("Shape", name, start=axis, end=axis + 1)
        )

    def size(self, size: int | str) -> str:
        """Returns the name of a tensor of shape [1] with a size: a name, a number or a `Size`."""
        if isinstance(size, str):
            return size
        if isinstance(size, Size):
            return self._expression(size.expression)
        if self.is_free(size):
            raise NoEntryError(f"it needs the size {size} of its trace, whose origin is unknown")
        return self.integers(int(size))

    def sizes(self, sizes: Sequence[int | str]) -> str:
        """Returns the name of a one-dimensional tensor of sizes."""
        if any(isinstance(size, str) or self.is_free(size) for size in sizes):
            return self.joined(map(self.size, sizes))
        return self.integers(*map(int, sizes))

    def joined(self, names: Iterable[str]) -> str:
        """Returns the name of several one-dimensional tensors as one."""
        first, *others = names
        return self.add("Concat", first, *others, axis=0) if others else first

    def _expression(self, expression: Any) -> str:
        if isinstance(expression, int):
            return self.integers(expression)
        if self._shares_sizes and self.outer is not None:
            return self.outer.size(Size(0, expression))
        return self.cached(("size of", expression), lambda: self._compute_size(expression))

    def _compute_size(self, expression: Any) -> str:
        if isinstance(expression, InputAxis):
            value = Value(self.graph.inputs[expression.input])
            return self.size(self.axis_size(value, expression.axis))
        if isinstance(expression, ValueAxis):
            return self.size(self.axis_size(expression.value, expression.axis))
        left, right = map(self._expression, (expression.left, expression.right))
        if expression.operator == _DIVISION:  # ONNX rounds towards zero, and its `Mod` as Python.
            remainder = self.add("Mod", left, right)
            return self.add("Div", self.add("Sub", left, remainder), right)
        return self.add(_ARITHMETIC[expression.operator], left, right)

    # Nodes that many handlers need.

    def transpose(self, name: str, perm: Sequence[int]) -> str:
        """Permutes the axes of a tensor, if that changes them."""
        if list(perm) == list(range(len(perm))):
            return name
        return self.add("Transpose", name, perm=list(perm))

    def reshape(
        self, name: str, sizes: Sequence[int | str], shape: Sequence[int | str] = ()
    ) -> str:
        """Reshapes a tensor to sizes: numbers, `Size`s or names; 0 copies one, -1 is what remains.

        `shape` is the shape of the tensor. Sizes that it keeps are not computed anew.
        """
        target = list(sizes)
        computed = [
            axis
            for axis, size in enumerate(target)
            if isinstance(size, str) or (size != -1 and self.is_free(size))
        ]
        for axis in list(computed):
            if _plain(shape[: axis + 1]) == _plain(sizes[: axis + 1]):
                target[axis] = 0  # The size of the same axis.
                computed.remove(axis)
        if len(computed) == 1 and -1 not in target:
            target[computed.pop()] = -1
        if not computed:
            return self.add("Reshape", name, self.integers(*map(int, target)))
        parts = (
            self.size(size) if axis in computed else self.integers(int(size))
            for axis, size in enumerate(target)
        )
        return self.add("Reshape", name, self.joined(parts))

    def reduce(self, kind: str, name: str, axes: Sequence[int], keepdims: Any) -> str:
        """Reduces axes of a tensor."""
        return self.add(kind, name, self.integers(*axes), keepdims=int(keepdims))

    # Operations and layers.

    def write_nodes(self) -> None:
        """Writes all operations that the outputs of the graph need."""
        for node in self.graph.nodes():
            if node.operation is not None:
                self.write_node(node)

    def write_node(self, node: Node) -> None:
        """Writes one operation or layer by its handler."""
        if len(node.outputs) == 1 and self.array(Value(node)) is not None:
            return
        self.layer = node.layer
        kind = type(node.operation).__name__ if node.is_layer else node.kind
        entry = (LAYERS if node.is_layer else TABLE).get(kind)
        if entry is None:
            leaf = self.graph.leaves.get(node.layer) if node.is_layer else None
            reason = f", and the layer {leaf.reason}" if leaf is not None else ""
            if leaf is not None and not is_known(type(node.operation)):
                reason += ". Compute outputs from inputs by keras.ops alone, and choose by ops.cond"
            raise NoEntryError(f"the table has no entry for it{reason}", _where(node))
        try:
            names = entry.handler(self, node, *node.args, **node.kwargs)
        except NoEntryError as error:
            raise error if error.where else NoEntryError(str(error), _where(node)) from error
        except ExportError:
            raise
        except Exception as error:  # A case that nobody thought of; its reason names the place.
            raise ExportError(f"{_where(node)}: {failure_reason(error)}") from error
        if names is None:
            return
        outputs = [names] if isinstance(names, str) else names
        for index, name in zip(range(len(node.outputs)), outputs, strict=True):
            self.put(Value(node, index), name)

    def inner(self, graph: Graph, *, shares_sizes: bool = False) -> "Writer":
        """Returns the writer of a body, which may read the values of this graph."""
        self._num_bodies += 1
        prefix = f"{self.prefix}{self.layer}/body_{self._num_bodies}/"
        if shares_sizes:
            graph.free_sizes = self.graph.free_sizes
        return Writer(graph, self.opset, outer=self, prefix=prefix, shares_sizes=shares_sizes)


def _plain(sizes: Sequence[int | str]) -> list[int | str]:
    return [size if isinstance(size, str) else int(size) for size in sizes]


def _where(node: Node) -> str:
    """Names an operation and its layer, for errors."""
    if node.is_layer:
        return f"layer {node.layer!r} ({type(node.operation).__name__})"
    return f"operation {node.kind}" + (f" of layer {node.layer!r}" if node.layer else "")
