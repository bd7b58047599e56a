"""Tracing of a Keras model, through its layers, to one flat graph of Keras operations.

For the time of a trace, the *instances* of the model's layers have another `symbolic_call`, which
runs the layer's own `call` on symbols. Their variables are symbols too, so that operations on
weights alone, such as LoRA's `W + A B`, are recorded and stay live. A layer is kept whole (a leaf)
if its call raises on symbols, assigns a variable, adds a loss or reads a variable's value. There is
no list of layers.

This file alone reads Keras's history of symbols.
"""

import contextlib
import copy
from collections.abc import Callable, Collection, Iterator
from typing import Any

import keras
from keras import tree
from keras.src.backend.common import global_state
from keras.src.backend.common.variables import Variable

from keras_deepseek.backend.keras_private.layers import flatten_layers, without_new_nodes
from keras_deepseek.backend.keras_private.masks import read_mask, set_mask
from keras_deepseek.backend.keras_private.temporary_attributes import own_attributes
from keras_deepseek.graph.ir import (
    CONSTANT,
    INPUT,
    WEIGHT,
    Graph,
    Leaf,
    Node,
    Spec,
    Value,
    holds_function,
)

_BOOKKEEPING = {
    "_trainable_variables",
    "_non_trainable_variables",
    "_layers",
    "_metrics",
    "_losses",
    "_loss_ids",
    "_variables",
    "_seed_generators",
    "_tracker",
}
"""Attributes in which Keras lists what a layer holds."""

_FAULTY_OPERATIONS = {"ConvTranspose"}
"""Operations whose `call` is wrong: Keras 3.15 exchanges two arguments of `ConvTranspose`."""


class CannotOpenError(Exception):
    """The reason why a layer is kept whole."""


class TemporaryCall:
    """The base class of a `call` that a model has for a time. A trace runs the model's own."""


class WeightSymbol(keras.KerasTensor):
    """A symbol in place of a variable, in the dtype that its layer reads (autocast)."""

    def __init__(self, variable: keras.Variable, dtype: str) -> None:
        super().__init__(tuple(variable.shape), dtype)
        self.variable = variable

    @property
    def value(self) -> "WeightSymbol":
        """The symbol itself."""
        return self

    @property
    def trainable(self) -> bool:
        """True if the variable is trainable."""
        return bool(self.variable.trainable)

    def assign(self, value: Any) -> None:
        """Raises: an assignment is no operation."""
        raise CannotOpenError(f"assigns {self.variable.path}")

    assign_add = assign_sub = assign


class SealedScope(keras.StatelessScope):
    """A scope that raises `CannotOpenError` if a variable is read or assigned, or a loss added."""

    def __init__(self) -> None:
        super().__init__(initialize_variables=False)

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
    model: keras.Model, inputs: Any, *, training: bool = False, whole: Collection[str] = ()
) -> Graph:
    """Traces a built model. Other threads must not call the model at the same time.

    Args:
        model: The model.
        inputs: Its inputs, as a structure of tensors or `KerasTensor`s without free axes.
        training: The value of `training` that layers get.
        whole: Paths of layers to keep whole.
    """
    return _Trace(model, frozenset(whole)).run(as_symbols(inputs), training)


def as_symbols(inputs: Any) -> Any:
    """Returns `KerasTensor`s of the shapes and dtypes of tensors."""
    return tree.map_structure(
        lambda tensor: keras.KerasTensor(
            tuple(tensor.shape), keras.backend.standardize_dtype(tensor.dtype)
        ),
        inputs,
    )


def record(function: Callable[..., Any], *args: Any, layer: str = "", **kwargs: Any) -> Value:
    """Calls a function of `keras.ops` on values, and returns the new value.

    Args:
        function: The function, which has one output.
        args: Its arguments; values may stand in them at any depth.
        layer: The path of the layer to which the new nodes belong.
        kwargs: Its keyword arguments.
    """
    table = _SymbolTable(lambda _: layer)
    symbols = tree.map_structure(table.symbol, (args, kwargs))
    with _restored_names():
        return table.value(function(*symbols[0], **symbols[1]))


class _SymbolTable:
    """The values of symbols, found in the history that Keras records."""

    def __init__(self, layer_of: Any) -> None:
        self._layer_of = layer_of  # The path of the layer that made a node of Keras's history.
        self._values: dict[int, Value] = {}
        self._aliases: dict[int, keras.KerasTensor] = {}
        self._constants: dict[int, Any] = {}
        self._leaves: dict[int, tuple[keras.Layer, Any, Any, list[keras.KerasTensor]]] = {}
        self._alive: list[Any] = []  # An id is unique only while its object is alive.

    def symbol(self, leaf: Any) -> Any:
        """Returns a symbol for a value, and anything else as it is."""
        if not isinstance(leaf, Value):
            return leaf
        symbol = keras.KerasTensor(leaf.shape, leaf.dtype)
        self.set_value(symbol, leaf)
        return symbol

    def set_value(self, symbol: keras.KerasTensor, value: Value) -> None:
        """Makes a symbol stand for a value."""
        self._values[id(symbol)] = value
        self._alive.append(symbol)

    def add_leaf(self, layer: keras.Layer, args: Any, kwargs: Any, outputs: Any) -> None:
        """Notes that symbols are the outputs of a whole layer."""
        found = [each for each in tree.flatten(outputs) if each is not None]
        self._leaves.update({id(each): (layer, args, kwargs, found) for each in found})
        self._alive.append((args, kwargs, found))

    def alias(self, tensor: Any) -> keras.KerasTensor | None:
        """Returns a new symbol for what a layer returned.

        Keras records the layer's own node on the symbols that it gets back.
        """
        if tensor is None:
            return None
        if isinstance(tensor, keras.KerasTensor):
            alias = keras.KerasTensor(tensor.shape, tensor.dtype, sparse=tensor.sparse)
            self._aliases[id(alias)] = tensor
        elif keras.ops.is_tensor(tensor):
            dtype = keras.backend.standardize_dtype(tensor.dtype)
            alias = keras.KerasTensor(tuple(tensor.shape), dtype)
            self._constants[id(alias)] = tensor
        else:
            raise CannotOpenError(f"returns a {type(tensor).__name__}, which is no tensor")
        self._alive.append((alias, tensor))
        if (mask := read_mask(tensor)) is not None:
            set_mask(alias, mask)
        return alias

    def is_known(self, symbol: keras.KerasTensor) -> bool:
        """Returns True for symbols whose history is not that of operations."""
        return (
            id(symbol) in self._aliases
            or id(symbol) in self._leaves
            or id(symbol) in self._values
            or isinstance(symbol, WeightSymbol)
        )

    def value(self, wanted: keras.KerasTensor) -> Value:
        """Returns the value of a symbol, with all nodes that it needs."""
        waiting = [wanted]
        while waiting:
            symbol = self._without_aliases(waiting[-1])
            if id(symbol) in self._values:
                waiting.pop()
                continue
            missing = self._add_node(symbol)
            waiting += missing
        return self._values[id(self._without_aliases(wanted))]

    def _without_aliases(self, symbol: keras.KerasTensor) -> keras.KerasTensor:
        while id(symbol) in self._aliases:
            symbol = self._aliases[id(symbol)]
        return symbol

    def _add_node(self, symbol: keras.KerasTensor) -> list[keras.KerasTensor]:
        """Adds the node that makes a symbol, or returns the symbols that it needs before."""
        if isinstance(symbol, WeightSymbol):
            spec = Spec(symbol.shape, symbol.dtype)
            self.set_value(symbol, Value(Node(WEIGHT, [spec], content=symbol.variable)))
            return []
        if id(symbol) in self._constants:
            self.set_value(symbol, _constant(self._constants[id(symbol)]))
            return []
        operation, args, kwargs, outputs, layer = self._source(symbol)
        missing = [
            each
            for each in tree.flatten((args, kwargs))
            if isinstance(each, keras.KerasTensor)
            and id(self._without_aliases(each)) not in self._values
        ]
        if not missing:
            args = tree.map_structure(self._argument, args)
            if type(operation).__name__ == "GetItem" and _was_tuple(args[1]):
                args = (args[0], tuple(args[1]))
            node = Node(
                type(operation).__name__,
                [Spec(each.shape, each.dtype) for each in outputs],
                operation,
                args,
                tree.map_structure(self._argument, kwargs),
                layer,
            )
            for index, output in enumerate(outputs):
                self.set_value(output, Value(node, index))
        return missing

    def _source(self, symbol: keras.KerasTensor) -> tuple[Any, Any, Any, list[Any], str]:
        if id(symbol) in self._leaves:
            layer, args, kwargs, outputs = self._leaves[id(symbol)]
            return layer, args, kwargs, outputs, path_of(layer)
        node = _history_node(symbol)
        if node is None or isinstance(node.operation, keras.layers.InputLayer):
            raise CannotOpenError("reads a symbol that is not one of the model's inputs")
        arguments = node.arguments
        return node.operation, arguments.args, arguments.kwargs, node.outputs, self._layer_of(node)

    def _argument(self, leaf: Any) -> Any:
        if isinstance(leaf, keras.KerasTensor):
            return self._values[id(self._without_aliases(leaf))]
        if isinstance(leaf, Variable):  # One that no layer holds as an attribute.
            dtype = keras.backend.standardize_dtype(leaf.dtype)
            return Value(Node(WEIGHT, [Spec(tuple(leaf.shape), dtype)], content=leaf))
        return _constant(leaf) if keras.ops.is_tensor(leaf) else leaf


class _Trace:
    """One trace of a model."""

    def __init__(self, model: keras.Model, whole: frozenset[str]) -> None:
        self._model = model
        self._whole = whole
        self._leaves: dict[str, Leaf] = {}
        self._weights: dict[tuple[int, str], WeightSymbol] = {}
        self._current_layers = [""]
        self._layers_of_nodes: dict[int, str] = {}
        self._nodes: list[Any] = []  # Keeps ids unique.
        self._table = _SymbolTable(lambda node: self._layers_of_nodes.get(id(node), ""))

    def run(self, inputs: Any, training: bool) -> Graph:
        """Calls the model on symbols, and returns the graph."""
        kwargs = {"training": training} if self._model._call_has_training_arg else {}
        with (
            without_new_nodes(self._model),
            _restored_names(),
            self._symbolic_calls(),
            SealedScope(),
        ):
            outputs = self._model(inputs, **kwargs)
            return self._graph(inputs, outputs)

    def _graph(self, inputs: Any, outputs: Any) -> Graph:
        symbols = tree.flatten(inputs)
        for symbol in symbols:
            self._table.set_value(symbol, Value(Node(INPUT, [Spec(symbol.shape, symbol.dtype)])))
        flat = tree.flatten(outputs)
        masks = [read_mask(each) for each in flat]
        return Graph(
            inputs=[self._table.value(each).node for each in symbols],
            outputs=[self._table.value(each) for each in flat],
            masks=[None if mask is None else self._table.value(mask) for mask in masks],
            structure=tree.map_structure(lambda _: 0, outputs),
            leaves=self._leaves,
        )

    @contextlib.contextmanager
    def _symbolic_calls(self) -> Iterator[None]:
        """Replaces `symbolic_call` of each layer instance in a `with` block."""
        with contextlib.ExitStack() as stack:
            for layer in flatten_layers(self._model):
                call = _SymbolicCall(self, layer)
                stack.enter_context(own_attributes(layer, symbolic_call=call))
            yield

    def call_layer(self, layer: keras.Layer, args: Any, kwargs: Any) -> Any:
        """Runs a layer's `call` on symbols, or keeps the layer whole. Keras has filled in masks."""
        self._note_nodes((args, kwargs))  # Those that the layer around this one made.
        path = path_of(layer)
        self._current_layers.append(path)
        try:
            reason = "was given as one to keep" if path in self._whole else _reason_to_keep(layer)
            if reason is None:
                try:
                    with self._weight_symbols(layer):
                        return self._returned(type(layer).call(layer, *args, **kwargs))
                except CannotOpenError as error:
                    reason = str(error)
                except Exception as error:  # noqa: BLE001 - a layer may raise anything on symbols
                    reason = f"{type(error).__name__}: {error}".split("\n", 1)[0][:100]
            return self._keep_whole(layer, args, kwargs, reason)
        finally:
            self._current_layers.pop()

    def _keep_whole(self, layer: keras.Layer, args: Any, kwargs: Any, reason: str) -> Any:
        if layer is self._model:
            raise CannotOpenError(reason)
        self._leaves[path_of(layer)] = Leaf(type(layer).__name__, reason)
        with self._own_attributes(layer), keras.StatelessScope(initialize_variables=False):
            outputs = type(layer).symbolic_call(layer, *args, **kwargs)
        given = {id(each) for each in tree.flatten((args, kwargs))}

        def without_inputs(symbol: Any) -> Any:  # `compute_output_spec` may return an input.
            is_input = id(symbol) in given and symbol is not None
            return keras.KerasTensor(symbol.shape, symbol.dtype) if is_input else symbol

        outputs = tree.map_structure(without_inputs, outputs)
        self._table.add_leaf(layer, args, kwargs, outputs)
        return self._returned(outputs)

    def _returned(self, outputs: Any) -> Any:
        self._note_nodes(outputs)
        return tree.map_structure(self._table.alias, outputs)

    def _note_nodes(self, outputs: Any) -> None:
        """Notes which layer made the new nodes, and rejects operations that hold functions."""
        waiting = [each for each in tree.flatten(outputs) if isinstance(each, keras.KerasTensor)]
        while waiting:
            symbol = waiting.pop()
            node = None if self._table.is_known(symbol) else _history_node(symbol)
            if node is None or id(node) in self._layers_of_nodes:
                continue
            self._layers_of_nodes[id(node)] = self._current_layers[-1]
            self._nodes.append(node)
            name = type(node.operation).__name__
            arguments = tree.flatten((node.arguments.args, node.arguments.kwargs))
            held = (*vars(node.operation).values(), *arguments)
            if not isinstance(node.operation, keras.Layer) and holds_function(held):
                raise CannotOpenError(f"uses ops.{name}, which holds a function")
            if name in _FAULTY_OPERATIONS:
                raise CannotOpenError(f"uses ops.{name}, whose `call` is wrong in Keras")
            waiting += node.arguments.keras_tensors

    def _weight_symbol(self, layer: keras.Layer, variable: keras.Variable) -> WeightSymbol:
        dtype = keras.backend.standardize_dtype(variable._dtype)
        if (
            layer.autocast
            and variable._autocast
            and keras.backend.is_float_dtype(dtype)
            and keras.backend.is_float_dtype(layer.compute_dtype)
        ):
            dtype = layer.compute_dtype
        return self._weights.setdefault((id(variable), dtype), WeightSymbol(variable, dtype))

    def _weight_symbols(self, layer: keras.Layer) -> contextlib.AbstractContextManager[None]:
        """Replaces the variables of a layer and the layers inside by symbols in a `with` block."""

        def symbols(inner: keras.Layer, value: Any) -> Any:
            if isinstance(value, Variable):
                return self._weight_symbol(inner, value)
            if isinstance(value, list | tuple) and any(isinstance(v, Variable) for v in value):
                return [
                    self._weight_symbol(inner, v) if isinstance(v, Variable) else v for v in value
                ]
            return value

        return _replaced_attributes(layer, symbols)

    @contextlib.contextmanager
    def _own_attributes(self, layer: keras.Layer) -> Iterator[None]:
        """Restores a whole layer's variables and calls, and those inside it, in a `with` block."""

        def variables(_: keras.Layer, value: Any) -> Any:
            if isinstance(value, WeightSymbol):
                return value.variable
            if type(value) is list and any(isinstance(v, WeightSymbol) for v in value):
                return [v.variable if isinstance(v, WeightSymbol) else v for v in value]
            return value

        calls = [
            (vars(each), vars(each).pop("symbolic_call", None)) for each in flatten_layers(layer)
        ]
        try:
            with _replaced_attributes(layer, variables):
                yield
        finally:
            for attributes, call in calls:
                if call is not None:
                    attributes["symbolic_call"] = call


class _SymbolicCall:
    """The `symbolic_call` of one layer for the time of a trace."""

    def __init__(self, trace: _Trace, layer: keras.Layer) -> None:
        self._trace = trace
        self._layer = layer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._trace.call_layer(self._layer, args, kwargs)


def path_of(layer: keras.Layer) -> str:
    """Returns the path of a layer, or its name if it has no path."""
    return str(layer.path or layer.name)


def _reason_to_keep(layer: keras.Layer) -> str | None:
    """Returns the reason to keep a layer whole without a trial, or `None`."""
    if getattr(layer, "quantization_mode", None) is not None:
        return "is quantized"  # Keras runs its `quantized_call`.
    if layer.activity_regularizer is not None:
        return "has an activity regularizer"
    is_replaced = not isinstance(vars(layer).get("call"), TemporaryCall | None)
    if layer._remat_mode is not None or is_replaced:
        return "recomputes its activations, or its `call` was replaced"
    return None


def _constant(tensor: Any) -> Value:
    spec = Spec(tuple(tensor.shape), keras.backend.standardize_dtype(tensor.dtype))
    return Value(Node(CONSTANT, [spec], content=tensor))


def _was_tuple(key: Any) -> bool:
    """Returns True for an index that was a tuple until the model was saved and loaded."""
    return isinstance(key, list) and any(
        each is None or each is Ellipsis or isinstance(each, slice) for each in key
    )


def _history_node(symbol: keras.KerasTensor) -> Any:
    """Returns the node of Keras's history that made a symbol, or `None`."""
    history = getattr(symbol, "_keras_history", None)
    if history is None or history.operation is None:
        return None
    return history.operation._inbound_nodes[history.node_index]


@contextlib.contextmanager
def _replaced_attributes(layer: keras.Layer, replacement: Any) -> Iterator[None]:
    """Replaces attributes of a layer and the layers inside it in a `with` block."""
    kept = []
    try:
        for inner in flatten_layers(layer):
            attributes = vars(inner)
            for name, value in list(attributes.items()):
                if name in _BOOKKEEPING:
                    continue
                new = replacement(inner, value)
                if new is not value:
                    kept.append((attributes, name, value))
                    attributes[name] = new  # Keras and the frameworks react to `setattr`.
        yield
    finally:
        for attributes, name, value in kept:
            attributes[name] = value


@contextlib.contextmanager
def _restored_names() -> Iterator[None]:
    """Restores Keras's counters of names, so that the user's next layer is not `dense_57`."""
    kept = copy.copy(global_state.get_global_attribute("object_name_uids"))
    try:
        yield
    finally:
        global_state.set_global_attribute("object_name_uids", kept)
