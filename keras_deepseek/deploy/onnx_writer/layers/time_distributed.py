"""`TimeDistributed` as ONNX nodes: rows of all steps at once, or a loop over the steps."""

from typing import Any

import keras

from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.deploy.onnx_writer.bodies import add_scan, make_body
from keras_deepseek.deploy.onnx_writer.layers.inner_graphs import (
    handles_keras_layer,
    swap_time,
    trace_function,
    write_in_place,
)
from keras_deepseek.deploy.onnx_writer.writer import LAST, NoEntryError, Writer
from keras_deepseek.graph.ir import Node, Spec, Value

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
    if mask is not None or any(map(writer.is_free, features)):
        raise NoEntryError("TimeDistributed with a mask, or of features of free size")
    step = Spec((batch, *features), x.dtype)
    graph = trace_function(layer, None, [step], writer.is_free)
    (output,) = graph.outputs
    cells = {type(inner) for inner in flatten_layers(layer)}
    if not cells <= _BY_ROW:
        steps = swap_time(writer, writer.name(x), len(x.shape))
        (steps,) = add_scan(writer, make_body(writer, graph), [], [steps])
        return swap_time(writer, steps, len(output.shape) + 1)
    rows = writer.reshape(writer.name(x), [-1, *map(int, features)])
    body = write_in_place(writer, graph, [{LAST: rows}])
    sizes = [writer.axis_size(x, 0), writer.axis_size(x, 1), *map(int, output.shape[1:])]
    return writer.reshape(body.name(output), sizes)
