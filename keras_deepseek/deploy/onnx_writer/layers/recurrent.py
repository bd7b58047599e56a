"""Layers of time steps: ONNX's `LSTM`, `GRU` and `RNN`, and a loop over any other cell or layer."""

import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.deploy.onnx_writer.bodies import add_scan, make_body
from keras_deepseek.deploy.onnx_writer.layers.inner_graphs import (
    handles_keras_layer,
    swap_time,
    trace_function,
    write_in_place,
)
from keras_deepseek.deploy.onnx_writer.table.shapes import reverse
from keras_deepseek.deploy.onnx_writer.writer import LAST, NoEntryError, Writer
from keras_deepseek.graph.ir import Node, Spec, Value

_ACTIVATIONS = {
    keras.activations.tanh: "Tanh",
    keras.activations.sigmoid: "Sigmoid",
    keras.activations.relu: "Relu",
    keras.activations.softsign: "Softsign",
    keras.activations.softplus: "Softplus",
}
"""The activations that ONNX's operators have without further numbers."""

_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (0, 1, 2), "SimpleRNN": (0,)}
"""The order in which ONNX has Keras's gates."""

_FOLLOWS = "PyTorch and TensorFlow, for a first step that a mask hides"
"""On JAX, Keras gives the initial state as its output."""


@handles_keras_layer("LSTM", "GRU", "SimpleRNN", follows=_FOLLOWS)
def recurrent(
    writer: Writer,
    node: Node,
    sequences: Value,
    initial_state: Any = None,
    mask: Value | None = None,
    **_: Any,
) -> list[str]:
    """Writes ONNX's operator, or a loop if there is a mask, which may hide any step."""
    layer, cell = node.operation, node.operation.cell
    functions = [cell.activation]
    if node.kind != "SimpleRNN":
        functions.insert(0, cell.recurrent_activation)
    is_loop = mask is not None or node.spec.dtype != "float32" or layer.stateful
    if is_loop or any(function not in _ACTIVATIONS for function in functions):
        return any_cell(writer, node, sequences, initial_state, mask)
    if node.kind == "LSTM":
        functions.append(cell.activation)
    states = [
        writer.add("Unsqueeze", writer.tensor(state, "float32"), writer.integers(0))
        for state in _states(initial_state)
    ]
    sequence = writer.tensor(sequences, "float32")
    if layer.go_backwards:
        sequence = reverse(writer, sequence, [1])
    outputs = writer.add_several(
        "RNN" if node.kind == "SimpleRNN" else node.kind,
        writer.add("Transpose", sequence, perm=[1, 0, 2]),
        *_weights(writer, node.kind, cell),
        *([None, *states] if states else []),
        outputs=3 if node.kind == "LSTM" else 2,
        hidden_size=cell.units,
        activations=[_ACTIVATIONS[function] for function in functions],
        linear_before_reset=int(cell.reset_after) if node.kind == "GRU" else None,
    )
    if layer.return_sequences:
        output = writer.add("Squeeze", outputs[0], writer.integers(1))
        output = writer.add("Transpose", output, perm=[1, 0, 2])
    else:
        output = writer.add("Squeeze", outputs[1], writer.integers(0))
    if not layer.return_state:
        return [output]
    return [output, *(writer.add("Squeeze", state, writer.integers(0)) for state in outputs[1:])]


def _states(initial_state: Any) -> list[Value]:
    states: list[Value] = [] if initial_state is None else tree.flatten(initial_state)
    return states


def _weights(writer: Writer, kind: str, cell: keras.Layer) -> list[str]:
    """Returns the names of the kernel, the recurrent kernel and the bias in ONNX's order."""

    def arranged(variable: keras.Variable) -> Array:
        array = np.asarray(keras.ops.convert_to_numpy(variable.value), "float32")
        parts = np.split(array, len(_GATES[kind]), axis=-1)
        return np.concatenate([parts[gate] for gate in _GATES[kind]], axis=-1)

    bias = np.zeros([2, len(_GATES[kind]) * cell.units], "float32")
    if cell.use_bias:
        stored = arranged(cell.bias)
        bias[: len(stored) if stored.ndim > 1 else 1] = stored
    kernels = (arranged(cell.kernel), arranged(cell.recurrent_kernel))
    return [
        *(writer.constant(kernel.T[None]) for kernel in kernels),
        writer.constant(bias.reshape(1, -1)),
    ]


@handles_keras_layer(
    *("RNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"),
    follows=f"{_FOLLOWS}, and for a cell whose output is not its first state, with a mask",
)
def any_cell(
    writer: Writer,
    node: Node,
    sequences: Value,
    initial_state: Any = None,
    mask: Value | None = None,
    **_: Any,
) -> list[str]:
    """Writes a loop over the traced call of the layer's cell."""
    layer = node.operation
    if layer.stateful:
        raise NoEntryError("a recurrent layer that keeps its state between calls")
    mask = tree.flatten(mask)[0]
    if not isinstance(sequences, Value) or (mask is not None and len(mask.shape) != 2):  # noqa: PLR2004
        raise NoEntryError("a recurrent layer of several sequences, or a mask of features")
    batch, _length, *features = sequences.shape
    if any(map(writer.is_free, features)):
        raise NoEntryError("a recurrent layer of features of free size")
    template = layer.get_initial_state(batch_size=1)
    dtype = layer.cell.compute_dtype
    states = [Spec((batch, *state.shape[1:]), dtype) for state in tree.flatten(template)]
    steps = [Spec((batch, *features), sequences.dtype)]
    names = [swap_time(writer, writer.name(sequences), len(sequences.shape))]
    if mask is not None:
        steps.append(Spec((batch,), "bool"))
        names.append(swap_time(writer, writer.tensor(mask, "bool"), 2))
        if not layer.zero_output_for_mask:  # The output before is one more state.
            output_shape = node.spec.shape[2 if layer.return_sequences else 1 :]
            states.append(Spec((batch, *output_shape), dtype))
    step = _step_of(layer, template, has_mask=mask is not None)
    graph = trace_function(writer, layer, step, [*states, *steps], len(states) + 1)
    _check_states(graph.outputs, states)
    begin = [writer.tensor(state, dtype) for state in _states(initial_state)]
    begin = begin or _first_states(writer, layer, sequences, dtype)
    if len(begin) < len(states):
        shape = writer.sizes([writer.axis_size(sequences, 0), *states[-1].shape[1:]])
        begin.append(writer.add("Expand", writer.tensor(0, dtype), shape))
    is_backwards = bool(layer.go_backwards)
    body = make_body(writer, graph)
    *last, outputs = add_scan(writer, body, begin, names, is_backwards=is_backwards)
    rank = len(graph.outputs[-1].shape) + 1
    if layer.return_sequences:
        output = swap_time(writer, outputs, rank)
    else:
        output = writer.add("Gather", outputs, writer.constant(np.int64(-1)), axis=0)
    results = [output, *last[: len(tree.flatten(template))]] if layer.return_state else [output]
    sources = [graph.outputs[-1].dtype, *[dtype] * (len(results) - 1)]
    return [
        writer.cast(name, source, spec.dtype)
        for name, source, spec in zip(results, sources, node.outputs, strict=True)
    ]


def _first_states(writer: Writer, layer: keras.Layer, sequences: Value, dtype: str) -> list[str]:
    """Returns the names of the states that a cell begins with, which each row has."""
    names = []
    for state in tree.flatten(layer.get_initial_state(batch_size=2)):
        first, second = np.asarray(keras.ops.convert_to_numpy(state))
        if not np.array_equal(first, second):
            raise NoEntryError("a cell that begins rows with other states")
        shape = writer.sizes([writer.axis_size(sequences, 0), *first.shape])
        names.append(writer.add("Expand", writer.constant(first, dtype), shape))
    return names


def _step_of(layer: keras.Layer, template: Any, *, has_mask: bool) -> Callable[..., list[Any]]:
    """Returns one step of a recurrent layer, a function of its states, its input and the mask.

    At a hidden step the states stay, and the output is zero or that of the step before.
    """
    count = len(tree.flatten(template))

    def step(*arguments: Any) -> list[Any]:
        states = list(arguments[:count])
        features = arguments[-2 if has_mask else -1]
        output, new_states = layer.cell(features, tree.pack_sequence_as(template, states))
        new_states = tree.flatten(new_states)
        if not has_mask:
            return [*new_states, output]

        def keep(new: Any, old: Any) -> Any:
            axes = tuple(range(1, len(new.shape)))
            is_visible = keras.ops.expand_dims(arguments[-1], axes) if axes else arguments[-1]
            return keras.ops.where(is_visible, new, old)

        new_states = [keep(new, old) for new, old in zip(new_states, states, strict=True)]
        if layer.zero_output_for_mask:
            return [*new_states, keep(output, 0.0)]
        output = keep(output, arguments[count])
        return [*new_states, output, output]

    return step


def _check_states(outputs: list[Value], states: list[Spec]) -> None:
    for value, spec in zip(outputs, states, strict=False):
        if value.dtype != spec.dtype or value.shape[1:] != spec.shape[1:]:
            raise NoEntryError(f"a cell whose state of {spec} becomes one of {value.shape}")


# The same layer for each step.

_BY_ROW = frozenset(
    getattr(keras.layers, name)
    for name in (
        *("Dense", "Conv1D", "Conv2D", "Conv3D", "DepthwiseConv1D", "DepthwiseConv2D"),
        *("SeparableConv1D", "SeparableConv2D", "Conv1DTranspose", "Conv2DTranspose"),
        *("MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "AveragePooling1D"),
        *("AveragePooling2D", "AveragePooling3D", "GlobalMaxPooling1D", "GlobalMaxPooling2D"),
        *("GlobalAveragePooling1D", "GlobalAveragePooling2D", "Flatten", "Reshape", "Permute"),
        *("BatchNormalization", "LayerNormalization", "Dropout", "Embedding", "ReLU", "LSTM"),
        *("GRU", "SimpleRNN", "ZeroPadding2D", "Cropping2D", "UpSampling2D"),
    )
) | {
    *(keras.Sequential, keras.layers.InputLayer),
    *(keras.layers.LSTMCell, keras.layers.GRUCell, keras.layers.SimpleRNNCell),
}
"""Keras's layers of which each row of the output depends on one row of the input."""


@handles_keras_layer("TimeDistributed")
def time_distributed(
    writer: Writer, node: Node, x: Value, mask: Value | None = None, **_: Any
) -> str:
    """Writes the layer for all steps of all rows if it mixes no rows, else for step after step."""
    layer = node.operation.layer
    batch, _length, *features = x.shape
    if layer.compute_dtype != node.operation.compute_dtype:
        raise NoEntryError("TimeDistributed of a layer of another dtype")
    steps, names, function = [Spec((batch, *features), x.dtype)], [writer.name(x)], None
    if mask is not None and "mask" in inspect.signature(layer.call).parameters:
        steps.append(Spec((batch, *mask.shape[2:]), "bool"))
        names.append(writer.tensor(mask, "bool"))
        function = _with_mask(layer)
    graph = trace_function(writer, layer, function, steps)
    (output,) = graph.outputs
    cells = {type(inner) for inner in flatten_layers(layer)}
    if function is None and cells <= _BY_ROW and not any(map(writer.is_free, features)):
        rows = writer.reshape(names[0], [-1, *map(int, features)])
        body = write_in_place(writer, graph, {LAST: rows})
        sizes = [writer.axis_size(x, 0), writer.axis_size(x, 1), *map(int, output.shape[1:])]
        return writer.reshape(body.name(output), sizes)
    names = [
        swap_time(writer, name, len(spec.shape) + 1)
        for name, spec in zip(names, steps, strict=True)
    ]
    (outputs,) = add_scan(writer, make_body(writer, graph), [], names)
    return swap_time(writer, outputs, len(output.shape) + 1)


def _with_mask(layer: keras.Layer) -> Callable[[Any, Any], Any]:
    return lambda features, mask: layer(features, mask=mask)
