"""A function of many tokens computed a chunk at a time, so that large intermediates stay few."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops


def map_chunks(
    function: Callable[..., Any],
    rows: Sequence[Any],
    fixed: Sequence[Any],
    shared: Sequence[Any],
    chunk_size: int,
    *,
    axis: int = 0,
    recomputes: bool = True,
) -> Any:
    """Returns `function(*rows, *fixed, *shared)`, computed chunk by chunk, forward and backward.

    The backward pass computes each chunk anew instead of keeping what is inside. The number of
    tokens may be unknown until the graph runs.

    Args:
        function: From a chunk of `rows` and of `fixed`, and `shared`, to a tensor or a tuple of
            tensors with the tokens of the chunk along `axis`. It must treat each token alone.
        rows: Floating-point tensors with the tokens along `axis`.
        fixed: Tensors with the tokens along `axis`, integers and the like, that have no gradient.
        shared: Floating-point tensors that all chunks need, such as kernels.
        chunk_size: integer. The most tokens of a chunk.
        axis: integer. The axis of the tokens, counted from the first. Defaults to `0`.
        recomputes: boolean. Whether the backward pass computes each chunk anew. Defaults to `True`.
    """
    num_tokens = ops.shape(rows[0])[axis]
    num_chunks, chunk_size, padding = _plan(num_tokens, chunk_size)

    def compute(chunk: Sequence[Any]) -> Any:
        kept = chunk[len(rows) :]

        def run(*floats: Any) -> Any:
            return function(*floats[: len(rows)], *kept, *floats[len(rows) :])

        # What is fixed is closed over: TensorFlow warns where integers are to be differentiated by.
        run = keras.remat(run) if recomputes else run
        return run(*chunk[: len(rows)], *shared)

    if isinstance(num_chunks, int) and num_chunks == 1:
        return compute([*rows, *fixed])

    # A chunk takes every `num_chunks`-th token. So the tokens of each device stay on it, where they
    # are spread over many: consecutive ones would be those of one device.
    def split(tensor: Any) -> Any:
        if not isinstance(padding, int) or padding:
            shape = ops.shape(tensor)
            filling = ops.zeros((*shape[:axis], padding, *shape[axis + 1 :]), dtype=tensor.dtype)
            tensor = ops.concatenate([tensor, filling], axis=axis)
        shape = ops.shape(tensor)
        shape = (*shape[:axis], chunk_size, num_chunks, *shape[axis + 1 :])
        return ops.moveaxis(ops.reshape(tensor, shape), axis + 1, 0)

    def join(results: Any) -> Any:
        results = ops.moveaxis(results, 0, axis + 1)
        shape = ops.shape(results)
        shape = (*shape[:axis], chunk_size * num_chunks, *shape[axis + 2 :])
        return ops.reshape(results, shape)[(slice(None),) * axis + (slice(0, num_tokens),)]

    results = ops.map(compute, tuple(split(tensor) for tensor in (*rows, *fixed)))
    return keras.tree.map_structure(join, results)


def _plan(num_tokens: Any, chunk_size: int) -> tuple[Any, int, Any]:
    """Returns the number of chunks, their size, and how many tokens the last ones lack."""
    if isinstance(num_tokens, int):
        chunk_size = max(1, min(chunk_size, num_tokens))
    num_chunks = -(-num_tokens // chunk_size)
    if isinstance(num_chunks, int):
        num_chunks = max(1, num_chunks)  # A loop of none has no result in some frameworks.
    return num_chunks, chunk_size, num_chunks * chunk_size - num_tokens
