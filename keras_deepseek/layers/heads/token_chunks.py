"""A function of many tokens computed a chunk at a time, so that large intermediates stay few."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops


def map_chunks(
    function: Callable[..., Any],
    tokens: Any,
    labels: Any,
    shared: Sequence[Any],
    chunk_size: int,
) -> Any:
    """Returns `function(tokens, labels, *shared)`, computed chunk by chunk, forward and backward.

    The backward pass computes each chunk anew instead of keeping what is inside. The number of
    tokens may be unknown until the graph runs.

    Args:
        function: From tensors of shape `(chunk, dim)` and `(chunk,)`, and `shared`, to one of
            shape `(chunk,)`. It must treat each token alone.
        tokens: Floating-point tensor of shape `(num_tokens, dim)`.
        labels: Integer tensor of shape `(num_tokens,)`. It has no gradient.
        shared: Floating-point tensors that all chunks need, such as kernels.
        chunk_size: integer. The most tokens of a chunk.
    """
    num_tokens, dim = ops.shape(tokens)[0], tokens.shape[-1]
    num_chunks, chunk_size, padding = _plan(num_tokens, chunk_size)
    if not isinstance(padding, int) or padding:
        tokens = ops.concatenate([tokens, ops.zeros((padding, dim), dtype=tokens.dtype)])
        labels = ops.concatenate([labels, ops.zeros((padding,), dtype=labels.dtype)])
    # A chunk takes every `num_chunks`-th token. So the tokens of each device stay on it, where a
    # batch is spread over many: consecutive ones would be those of one device.
    tokens = ops.transpose(ops.reshape(tokens, (chunk_size, num_chunks, dim)), (1, 0, 2))
    labels = ops.transpose(ops.reshape(labels, (chunk_size, num_chunks)))

    def compute(chunk: tuple[Any, Any]) -> Any:
        # Integers are closed over: TensorFlow warns where they are to be differentiated by.
        return keras.remat(lambda rows, *rest: function(rows, chunk[1], *rest))(chunk[0], *shared)

    results = ops.map(compute, (tokens, labels))
    return ops.reshape(ops.transpose(results), (-1,))[:num_tokens]


def _plan(num_tokens: Any, chunk_size: int) -> tuple[Any, int, Any]:
    """Returns the number of chunks, their size, and how many tokens the last ones lack."""
    if isinstance(num_tokens, int):
        chunk_size = max(1, min(chunk_size, num_tokens))
    num_chunks = -(-num_tokens // chunk_size)
    if isinstance(num_chunks, int):
        num_chunks = max(1, num_chunks)  # A loop of none has no result in some frameworks.
    return num_chunks, chunk_size, num_chunks * chunk_size - num_tokens
