"""Tracing of a Keras model, through its layers, to one flat graph of Keras operations.

For the time of a trace, the *instances* of the model's layers have another `symbolic_call`, which
runs the layer's own `call` on symbols. Their variables are symbols too, so that operations on
weights alone, such as LoRA's `W + A B`, are recorded and stay live. A layer is kept whole (a leaf)
if it has code that is not known (`known_code.py`), or if its call raises on symbols, assigns a
variable, adds a loss or reads a variable's value. No list of layers is kept; `TimeDistributed`
alone is named, whose call repeats its layer by a loop.

This file alone reads Keras's history of symbols.
"""

import contextlib
import copy
import dataclasses
import functools
import random
import re
import types
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import tree
from keras.src.backend import compute_output_spec
from keras.src.backend.common import global_state
from keras.src.backend.common.variables import Variable

from keras_deepseek.backend.keras_private.fixes import (
    fixed_batch_norm,
    fixed_get_item,
    fixed_layer_outputs,
)
from keras_deepseek.backend.keras_private.layers import flatten_layers, without_new_nodes
from keras_deepseek.backend.keras_private.masks import output_masks, read_mask, set_mask
from keras_deepseek.backend.keras_private.temporary_attributes import own_attributes
from keras_deepseek.backend.keras_private.variables import (
    kept_global_seed,
    scoped_values,
    stored_dtype,
)
from keras_deepseek.graph.control_flow import ControlFlow
from keras_deepseek.graph.created_tensors import creation_as_operations
from keras_deepseek.graph.ir import (
    INPUT,
    WEIGHT,
    Graph,
    Leaf,
    Node,
    Shape,
    Spec,
    Value,
    constant_of,
)
from keras_deepseek.graph.known_code import (
    CannotOpenError,
    Reading,
    find_foreign_code,
    protected_attributes,
    read_layer,
)

_BOOKKEEPING = ("_trainable_variables", "_non_trainable_variables")
"""Attributes in which Keras lists the variables of a layer."""


class TemporaryCall:
    """The base class of a temporary `call` of a model. A trace runs the model's own `call`."""


class WeightSymbol(keras.KerasTensor):
    """A symbol in place of a variable, in the dtype that its layer reads (autocast)."""

    def __init__(self, variable: keras.Variable, dtype: str) -> None:
        super().__init__(tuple(variable.shape), dtype)
        self.variable = variable

    @property
    def value(self) -> "WeightSymbol":
        """The symbol itself."""
        return self

    def assign(self, value: Any) -> None:
        """Raises: an assignment is no operation."""
        raise CannotOpenError(f"assigns {self.variable.path}")

    assign_add = assign_sub = assign


class SealedScope(keras.StatelessScope):
    """A scope that raises `CannotOpenError` if a variable is read or assigned, or a loss added."""

    def get_current_value(self, variable: keras.Variable) -> Any:
        """Keras calls this before it reads a variable."""
        if variable.name == "seed_generator_state":
            raise CannotOpenError("draws random numbers")
        raise CannotOpenError(f"computes in Python with the value of {variable.path}")

    def add_update(self, update: tuple[keras.Variable, Any]) -> None:
        """Keras calls this before it assigns a variable."""
        raise CannotOpenError(f"assigns {update[0].path}")

    def add_loss(self, loss: Any) -> None:
        """Keras calls this for a layer's `add_loss`."""
        raise CannotOpenError("adds a loss")


def trace_model(
    model: keras.Model,
    inputs: Any,
    *,
    training: bool = False,
    whole: Collection[str] = (),
    opens_foreign: bool = False,
    keeps_readers_of_sizes: bool = False,
    records_creation: bool = False,
    records_control_flow: bool = False,
) -> Graph:
    """Traces a built model. Other threads must not call the model at the same time.

    The inputs are tensors or `KerasTensor`s of known shapes. `whole` has the paths of layers to
    keep whole. With `opens_foreign`, layers whose code is not known are traced too: for drawings,
    and for results that are compared with the model later. With `keeps_readers_of_sizes`, layers of
    users that compute with sizes are kept whole: for inputs of unknown sizes. With
    `records_creation`, `ops.arange` and its like are operations. With `records_control_flow`, those
    that call functions, such as `ops.scan`, are operations with inner graphs; else a layer that
    uses one is kept whole.
    """
    trace = _Trace(
        model, whole, opens_foreign, keeps_readers_of_sizes, records_creation, records_control_flow
    )
    return trace.run(as_symbols(inputs), training)


def call_model(model: keras.Model, inputs: Any, *, training: bool) -> Any:
    """Calls a model by its own `call`, even while a `TemporaryCall` replaces it."""
    kwargs = {"training": training} if model._call_has_training_arg else {}
    attributes = vars(model)
    temporary = attributes.get("call")
    if not isinstance(temporary, TemporaryCall):
        return model(inputs, **kwargs)
    del attributes["call"]
    try:
        return model(inputs, **kwargs)
    finally:
        attributes["call"] = temporary


def as_symbols(inputs: Any, shapes: Sequence[Shape] | None = None) -> Any:
    """Converts tensors to `KerasTensor`s. `shapes`, in flat order, replace their own shapes."""
    flat = tree.flatten(inputs)
    symbols = [
        keras.KerasTensor(tuple(shape), keras.backend.standardize_dtype(tensor.dtype))
        for tensor, shape in zip(flat, shapes or [tensor.shape for tensor in flat], strict=True)
    ]
    return tree.pack_sequence_as(inputs, symbols)


def record(function: Callable[..., Any], *args: Any, layer: str = "", **kwargs: Any) -> Value:
    """Calls a function of `keras.ops` on values, and returns the new value.

    Values may stand in the arguments at any depth. `layer` is the path of the layer to which the
    new nodes belong.
    """
    history = _History()
    args, kwargs = tree.map_structure(
        lambda leaf: history.make_symbol(leaf) if isinstance(leaf, Value) else leaf, (args, kwargs)
    )
    with _restored_names():
        return history.value(function(*args, **kwargs), layer)


class _History:
    """The values of symbols, made from the history that Keras records on symbols."""

    def __init__(self) -> None:
        self._values: dict[int, Value] = {}
        self._alive: list[keras.KerasTensor] = []  # An id is unique only while its object is alive.
        self._methods: dict[type, Any] = {}

    def set_value(self, symbol: keras.KerasTensor, value: Value) -> None:
        self._values[id(symbol)] = value
        self._alive.append(symbol)

    @contextlib.contextmanager
    def branch(self) -> Iterator[Collection[int]]:
        """Context manager that forgets at its end the values that are set in it, but weights.

        It yields the ids of the nodes known before.
        """
        outside = dict(self._values)
        try:
            yield {id(value.node) for value in outside.values()}
        finally:
            weights = {
                key: value for key, value in self._values.items() if value.node.kind == WEIGHT
            }
            self._values = outside | weights

    def make_symbol(self, value: Value, like: Any = None) -> keras.KerasTensor:
        """Returns a new symbol for a value, with the Keras mask of the tensor that it is `like`."""
        is_sparse = isinstance(like, keras.KerasTensor) and like.sparse
        symbol = keras.KerasTensor(value.shape, value.dtype, sparse=is_sparse)
        self.set_value(symbol, value)
        return set_mask(symbol, None if like is None else read_mask(like))

    def value(self, target: keras.KerasTensor, layer: str) -> Value:
        """Returns the value of a symbol. The nodes that are made for it belong to a layer."""
        waiting = [target]
        entered: set[int] = set()
        while waiting:  # The symbols that an operation reads come before those that it makes.
            symbol = waiting[-1]
            if id(symbol) in self._values:
                waiting.pop()
                continue
            history_node = _history_node(symbol)
            arguments = history_node.arguments
            missing = [
                argument for argument in arguments.keras_tensors if id(argument) not in self._values
            ]
            if missing and id(symbol) in entered:
                name = history_node.operation.name
                raise CannotOpenError(f"uses {name}, which returns its own input")
            entered.add(id(symbol))
            waiting += missing
            if not missing:
                operation, outputs = history_node.operation, history_node.outputs
                node = self.make_node(operation, arguments.args, arguments.kwargs, outputs, layer)
                for index, output in enumerate(outputs):
                    self.set_value(output, Value(node, index))
        return self._values[id(target)]

    def make_node(
        self, operation: keras.Operation, args: Any, kwargs: Any, outputs: list[Any], layer: str
    ) -> Node:
        """Returns the node of an operation on symbols whose values are known."""
        kind = type(operation).__name__
        if not isinstance(operation, keras.Layer):
            if code := find_foreign_code(operation, self._methods):
                kind = code  # No pass may take it for an operation of Keras.
            contents = (*vars(operation).values(), *tree.flatten((args, kwargs)))
            if any(isinstance(leaf, types.FunctionType | types.MethodType) for leaf in contents):
                raise CannotOpenError(f"uses ops.{kind}, which holds a function")
            if kind == "ConvTranspose":  # Keras 3.15 exchanges two arguments of it.
                raise CannotOpenError("uses ops.ConvTranspose, whose `call` is wrong in Keras")
        args, kwargs = tree.map_structure(self._argument, (args, kwargs))
        if kind == "GetItem" and isinstance(args[1], list):  # Saved models have lists.
            args = (args[0], tuple(args[1]))
        specs = [Spec(output.shape, output.dtype) for output in outputs]
        return Node(kind, specs, operation, args, kwargs, layer)

    def _argument(self, leaf: Any) -> Any:
        if isinstance(leaf, keras.KerasTensor):
            return self._values[id(leaf)]
        if isinstance(leaf, Variable):  # One that no layer holds as an attribute.
            return _weight(leaf, keras.backend.standardize_dtype(leaf.dtype))
        return constant_of(leaf) if keras.ops.is_tensor(leaf) else leaf


@dataclasses.dataclass(eq=False)
class _Trace:
    """A trace of a model, with the options of `trace_model`."""

    model: keras.Model
    whole: Collection[str]
    opens_foreign: bool
    keeps_readers_of_sizes: bool
    records_creation: bool
    records_control_flow: bool

    def __post_init__(self) -> None:
        layers = [] if self.opens_foreign else flatten_layers(self.model)
        self._readings = {id(layer): read_layer(layer) for layer in layers}
        self._has_symbols: set[int] = set()
        """The ids of the layers whose variables are symbols at the moment."""
        self._leaves: list[tuple[Node, Leaf]] = []
        self._weights: dict[tuple[int, str], WeightSymbol] = {}
        self._current_layer = ""
        self._is_in_leaf = False
        self._outer_values: list[tuple[keras.Variable, Any]] = []
        """The values that variables have in the step of Keras that is being traced."""
        self._history = _History()

    def run(self, inputs: Any, training: bool) -> Graph:
        """Calls the model on symbols, with `_call_layer` for its layers, and returns the graph."""
        kwargs = {"training": training} if self.model._call_has_training_arg else {}
        symbols = tree.flatten(inputs)
        nodes = [Node(INPUT, [Spec(symbol.shape, symbol.dtype)]) for symbol in symbols]
        for symbol, node in zip(symbols, nodes, strict=True):
            self._history.set_value(symbol, Value(node))
        with contextlib.ExitStack() as stack:
            stack.enter_context(_restored_generators())
            stack.enter_context(protected_attributes(self.model))
            stack.enter_context(without_new_nodes(self.model))
            stack.enter_context(_restored_names())
            stack.enter_context(fixed_batch_norm())
            stack.enter_context(fixed_layer_outputs())
            for layer in flatten_layers(self.model):
                call = functools.partial(self._call_layer, layer)
                stack.enter_context(own_attributes(layer, symbolic_call=call))
            stack.enter_context(kept_global_seed())
            for reading in self._readings.values():
                if reading.outer_reason is not None:
                    raise CannotOpenError(f"has code that is not known: {reading.outer_reason}")
            self._outer_values = scoped_values(self.model.variables)
            stack.enter_context(SealedScope(initialize_variables=False))
            if self.records_creation:
                stack.enter_context(creation_as_operations())
                stack.enter_context(fixed_get_item())
            if self.records_control_flow:
                recorder = ControlFlow(self._history, lambda: self._current_layer)
                layers = flatten_layers(self.model)
                operations = [op for layer in layers for op in getattr(layer, "operations", ())]
                stack.enter_context(recorder.recording(operations))
                stack.enter_context(fixed_get_item())
            outputs = self.model(inputs, **kwargs)
            graph = Graph(
                inputs=nodes,
                outputs=[self._value(output) for output in tree.flatten(outputs)],
                masks=[
                    mask if mask is None else self._value(mask) for mask in output_masks(outputs)
                ],
                structure=tree.map_structure(lambda _: 0, outputs),
                leaves={node.layer: leaf for node, leaf in self._leaves},
            )
        needed = set(graph.all_nodes())
        if not {node for node in graph.nodes() if node.kind == INPUT} <= set(nodes):
            raise CannotOpenError("uses a tensor of a loop outside of it")
        for node, _ in self._leaves:
            if node not in needed:  # It may add a loss or assign a variable.
                raise CannotOpenError(f"calls {node.layer}, and does not use its outputs")
        return graph

    def _call_layer(self, layer: keras.Layer, /, *args: Any, **kwargs: Any) -> Any:
        """Runs a layer's `call` on symbols, or keeps the layer whole. Keras has filled in masks."""
        if self._is_in_leaf:
            return type(layer).symbolic_call(layer, *args, **kwargs)
        for argument in tree.flatten((args, kwargs)):
            if isinstance(argument, keras.KerasTensor):
                self._value(argument)  # Nodes that the layer around this one made.
        path = path_of(layer)
        number = len(self._leaves)
        with own_attributes(self, _current_layer=path):
            reason = "was given as one to keep" if path in self.whole else _reason_to_keep(layer)
            reading = Reading() if self.opens_foreign else self._readings[id(layer)]
            if reason is None and reading.reason is not None:
                reason = f"has code that is not known: {reading.reason}"
            elif reason is None and reading.reads_sizes and self.keeps_readers_of_sizes:
                reason = "computes with sizes, which are unknown here"
            if reason is None:
                try:
                    with self._variables_as_symbols(layer):
                        outputs = type(layer).call(layer, *args, **kwargs)
                        results = tree.map_structure(self._returned, outputs)
                except Exception as error:  # noqa: BLE001 - a layer may raise anything on symbols
                    reason = describe_error(error)
                else:
                    return results
            del self._leaves[number:]
            return self._keep_whole(layer, args, kwargs, reason)

    @contextlib.contextmanager
    def _variables_as_symbols(self, layer: keras.Layer) -> Iterator[None]:
        if id(layer) in self._has_symbols:  # As the layer around it.
            yield
            return
        layers = {id(inner) for inner in flatten_layers(layer)}
        with (
            own_attributes(self, _has_symbols=self._has_symbols | layers),
            _replaced_attributes(layer, Variable, self._weight_symbol),
        ):
            yield

    def _keep_whole(self, layer: keras.Layer, args: Any, kwargs: Any, reason: str) -> Any:
        """Adds a layer as one node, and returns symbols like its outputs."""
        if layer is self.model:
            raise CannotOpenError(reason)
        with (
            _replaced_attributes(layer, WeightSymbol, lambda _, symbol: symbol.variable),
            own_attributes(self, _is_in_leaf=True),
            keras.StatelessScope(self._outer_values, initialize_variables=False),
        ):
            outputs = type(layer).symbolic_call(layer, *args, **kwargs)
            symbols = [output for output in tree.flatten(outputs) if output is not None]
            if any(None in symbol.shape for symbol in symbols):
                # `EinsumDense(output_shape=(None, 4))` declares a size that it does not know.
                is_quantized = getattr(layer, "quantization_mode", None) is not None
                call = layer.quantized_call if is_quantized else layer.call
                outputs = compute_output_spec(call, *args, **kwargs)
        flat = tree.flatten(outputs)
        symbols = [output for output in flat if output is not None]
        node = self._history.make_node(layer, args, kwargs, symbols, path_of(layer))
        self._leaves.append((node, Leaf(type(layer).__name__, reason)))
        values = (Value(node, index) for index in range(len(symbols)))
        new = [  # `compute_output_spec` may return an input.
            None if output is None else self._history.make_symbol(next(values), output)
            for output in flat
        ]
        return tree.pack_sequence_as(outputs, new)  # `map_structure` takes dicts in another order.

    def _returned(self, tensor: Any) -> keras.KerasTensor | None:
        """Returns a new symbol, on which Keras may record the layer's own node."""
        if tensor is None:
            return None
        if isinstance(tensor, keras.KerasTensor):
            return self._history.make_symbol(self._value(tensor), tensor)
        if keras.ops.is_tensor(tensor):
            return self._history.make_symbol(constant_of(tensor), tensor)
        raise CannotOpenError(f"returns a {type(tensor).__name__}, which is no tensor")

    def _value(self, symbol: keras.KerasTensor) -> Value:
        return self._history.value(symbol, self._current_layer)

    def _weight_symbol(self, layer: keras.Layer, variable: keras.Variable) -> WeightSymbol:
        """Returns the symbol of a variable, one for each dtype in which layers read it."""
        dtype = stored_dtype(variable)
        if (
            layer.autocast
            and variable._autocast
            and keras.backend.is_float_dtype(dtype)
            and keras.backend.is_float_dtype(layer.compute_dtype)
        ):
            dtype = layer.compute_dtype
        key = id(variable), dtype
        if key not in self._weights:
            self._weights[key] = WeightSymbol(variable, dtype)
            self._history.set_value(self._weights[key], _weight(variable, dtype))
        return self._weights[key]


def path_of(layer: keras.Layer) -> str:
    """Returns the path of a layer, or its name if it has no path."""
    return str(layer.path or layer.name)


def _reason_to_keep(layer: keras.Layer) -> str | None:
    """Returns the reason to keep a layer whole without a trial, or `None`."""
    if getattr(layer, "quantization_mode", None) is not None:
        return "is quantized"  # Keras runs its `quantized_call`.
    if layer.activity_regularizer is not None:
        return "has an activity regularizer"
    if isinstance(layer, keras.layers.TimeDistributed):
        return "repeats its layer's operations for each time step"
    is_replaced = not isinstance(vars(layer).get("call"), TemporaryCall | None)
    if layer._remat_mode is not None or is_replaced:
        return "recomputes its activations, or its `call` was replaced"
    return None


def describe_error(error: Exception) -> str:
    """Returns what a layer does that fails: the first line, without what Keras adds to it."""
    line = re.sub(r"(?s).*\x1b\[1m(.*)\x1b\[0m.*", r"\1", str(error)).split("\n", 1)[0]
    if isinstance(error, CannotOpenError):
        return line
    return f"fails on symbols, with {type(error).__name__}: {line.rstrip('.')}"


def _weight(variable: keras.Variable, dtype: str) -> Value:
    return Value(Node(WEIGHT, [Spec(tuple(variable.shape), dtype)], content=variable))


def _history_node(symbol: keras.KerasTensor) -> Any:
    """Returns the Keras node, a call of an operation, that made a symbol."""
    history: Any = getattr(symbol, "_keras_history", None)
    if history is None or isinstance(history.operation, keras.layers.InputLayer | None):
        raise CannotOpenError("reads a symbol that is not one of the model's inputs")
    operation = history.operation
    # An input whose rank Keras adjusted has the history of the input before.
    for node in (operation._inbound_nodes[history.node_index], *operation._outbound_nodes):
        if any(output is symbol for output in node.outputs):
            return node
    raise CannotOpenError(f"reads a symbol that {operation.name} did not return")


@contextlib.contextmanager
def _replaced_attributes(
    layer: keras.Layer, kind: type, replacement: Callable[[keras.Layer, Any], Any]
) -> Iterator[None]:
    """Replaces objects of a class, also in lists, that a layer and the layers inside it hold."""
    originals = []
    try:
        for inner in flatten_layers(layer):
            attributes = vars(inner)
            for name, value in list(attributes.items()):
                members = value if isinstance(value, list | tuple) else [value]
                if name in _BOOKKEEPING or not any(isinstance(member, kind) for member in members):
                    continue
                originals.append((attributes, name, value))
                new = [
                    replacement(inner, member) if isinstance(member, kind) else member
                    for member in members
                ]
                # Keras and the frameworks react to `setattr`.
                attributes[name] = new if members is value else new[0]
        yield
    finally:
        for attributes, name, value in originals:
            attributes[name] = value


@contextlib.contextmanager
def _restored_generators() -> Iterator[None]:
    """Restores the generators of Python and NumPy, from which layers may draw."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextlib.contextmanager
def _restored_names() -> Iterator[None]:
    """Restores Keras's counters of names, so that the user's next layer is not `dense_57`."""
    name_counts = copy.copy(global_state.get_global_attribute("object_name_uids"))
    try:
        yield
    finally:
        global_state.set_global_attribute("object_name_uids", name_counts)
