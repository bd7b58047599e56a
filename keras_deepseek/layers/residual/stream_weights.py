"""Functions that compute, normalize and apply the weights that mix residual streams."""

from typing import Any

import keras
from keras import ops

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.double_precision import multiply_matrices, promote_dtypes
from keras_deepseek.layers.input_check import Shape

MIN_STREAMS = 2


def check_streams(layer_name: str, input_shape: Shape) -> tuple[int, int]:
    """Returns the number and the size of residual streams, or raises an error for other shapes."""
    *batch, num_streams, dim = input_shape if len(input_shape) > 1 else (None, None)
    if not batch or num_streams is None or dim is None or num_streams < MIN_STREAMS:
        raise InvalidInputError(
            f"{layer_name!r} needs inputs of shape (batch_size, ..., num_streams, dim) with a "
            f"known dim and {MIN_STREAMS} or more streams, received {tuple(input_shape)}. Create "
            "streams with `ResidualStreamExpansion`."
        )
    return num_streams, dim


def add_stream_weights(layer: Any, input_shape: Shape, units: int, num_scales: int) -> None:
    """Adds the kernel, the bias and the scale that compute `units` numbers from a token's streams.

    Inputs are `(batch_size, ..., num_streams, dim)`.
    """
    num_streams, dim = check_streams(layer.name, input_shape)
    layer.input_spec = keras.InputSpec(min_ndim=3, axes={-2: num_streams, -1: dim})
    layer.kernel = layer.add_weight(
        name="kernel",
        shape=(num_streams * dim, units),
        initializer=layer.kernel_initializer,
        autocast=False,
    )
    layer.bias = layer.add_weight(name="bias", shape=(units,), initializer="zeros", autocast=False)
    layer.scale = layer.add_weight(
        name="scale", shape=(num_scales,), initializer="ones", autocast=False
    )


def read_stream_weights(layer: Any) -> tuple[Any, Any, Any]:
    """Returns the kernel, the bias and the scale of a layer, in float32 or better."""
    dtype = promote_dtypes(layer.variable_dtype, "float32")
    kernel, bias, scale = (
        ops.cast(weight, dtype) for weight in (layer.kernel, layer.bias, layer.scale)
    )
    return kernel, bias, scale


def project_streams(streams: Any, kernel: Any, epsilon: float) -> Any:
    """Flattens each token's residual streams, normalizes them by RMS, and applies a kernel.

    Streams are `(batch_size, ..., num_streams, dim)`. The kernel is `(num_streams * dim, units)`;
    its dtype is that of the computation.
    """
    flat = ops.reshape(ops.cast(streams, kernel.dtype), (*ops.shape(streams)[:-2], kernel.shape[0]))
    mean_square = ops.mean(ops.square(flat), axis=-1, keepdims=True)
    return multiply_matrices(flat * ops.rsqrt(mean_square + epsilon), kernel)


def normalize_doubly(matrices: Any, iterations: int, epsilon: float) -> Any:
    """Makes rows and columns of matrices sum to almost 1, by Sinkhorn-Knopp iterations.

    The first round normalizes only the columns, because the rows of the positive matrices `(..., n,
    n)` already sum to 1. `epsilon` is added to each sum.
    """
    matrices = matrices / (ops.sum(matrices, axis=-2, keepdims=True) + epsilon)
    for _ in range(iterations - 1):
        matrices = matrices / (ops.sum(matrices, axis=-1, keepdims=True) + epsilon)
        matrices = matrices / (ops.sum(matrices, axis=-2, keepdims=True) + epsilon)
    return matrices


def sum_streams(streams: Any, weights: Any) -> Any:
    """Returns the weighted sum of the streams `(..., num_streams, dim)`, in their dtype.

    Weights are `(batch_size, ..., num_streams)`.
    """
    weights = ops.expand_dims(weights, -1)
    return ops.cast(ops.sum(weights * ops.cast(streams, weights.dtype), axis=-2), streams.dtype)
