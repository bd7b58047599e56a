"""How residual streams say how they are to be mixed: numbers computed from themselves."""

from typing import Any

from keras import ops

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.double_precision import multiply_matrices
from keras_deepseek.layers.input_check import Shape

MIN_STREAMS = 2


def check_streams(layer_name: str, input_shape: Shape) -> tuple[int, int]:
    """Returns the number of streams and their size, or says what was received.

    Args:
        layer_name: string. The layer, as the error names it.
        input_shape: tuple. The shape of its inputs.

    Raises:
        InvalidInputError: It is not one of streams.
    """
    *batch, num_streams, dim = input_shape if len(input_shape) > 1 else (None, None)
    if not batch or num_streams is None or dim is None or num_streams < MIN_STREAMS:
        raise InvalidInputError(
            f"{layer_name!r} needs inputs of shape (batch_size, ..., num_streams, dim) with a "
            f"known dim and {MIN_STREAMS} or more streams, received {tuple(input_shape)}. "
            "`ResidualStreamExpansion` makes such."
        )
    return num_streams, dim


def project_streams(streams: Any, kernel: Any, norm_epsilon: float) -> Any:
    """Returns the streams of each token, as one vector of root mean square 1, times a kernel.

    Args:
        streams: Tensor of shape `(batch_size, ..., num_streams, dim)`.
        kernel: Tensor of shape `(num_streams * dim, units)`. Its dtype is the one computed in.
        norm_epsilon: float. Added to the mean square.
    """
    flat = ops.reshape(ops.cast(streams, kernel.dtype), (*ops.shape(streams)[:-2], kernel.shape[0]))
    mean_square = ops.mean(ops.square(flat), axis=-1, keepdims=True)
    return multiply_matrices(flat * ops.rsqrt(mean_square + norm_epsilon), kernel)


def normalize_doubly(matrices: Any, iterations: int, epsilon: float) -> Any:
    """Returns matrices whose rows and columns sum to almost 1, by Sinkhorn and Knopp's rounds.

    The first round starts from rows that already do, and takes the columns alone.

    Args:
        matrices: Tensor of shape `(..., n, n)`, positive, whose rows sum to 1.
        iterations: integer. The number of rounds.
        epsilon: float. Added to each sum.
    """
    matrices = matrices / (ops.sum(matrices, axis=-2, keepdims=True) + epsilon)
    for _ in range(iterations - 1):
        matrices = matrices / (ops.sum(matrices, axis=-1, keepdims=True) + epsilon)
        matrices = matrices / (ops.sum(matrices, axis=-2, keepdims=True) + epsilon)
    return matrices


def sum_streams(streams: Any, weights: Any) -> Any:
    """Returns the weighted sum of the streams, in their dtype.

    Args:
        streams: Tensor of shape `(batch_size, ..., num_streams, dim)`.
        weights: Tensor of shape `(batch_size, ..., num_streams)`.
    """
    weights = ops.expand_dims(weights, -1)
    return ops.cast(ops.sum(weights * ops.cast(streams, weights.dtype), axis=-2), streams.dtype)
