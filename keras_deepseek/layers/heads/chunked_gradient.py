"""Chunked computation of a function of many tokens, with a gradient given by the caller."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from keras import ops

from keras_deepseek.backend import current
from keras_deepseek.layers.double_precision import promote_dtypes
from keras_deepseek.layers.opaque_operation import call_opaque
from keras_deepseek.layers.token_chunks import TokenChunks


def map_chunks_with_gradient(
    function: Callable[..., Any],
    gradient: Callable[..., Sequence[Any]],
    tokens: Any,
    labels: Any,
    shared: Sequence[Any],
    chunk_size: int,
) -> Any:
    """Computes `function(tokens, labels, *shared)` (num_tokens) and its gradient in chunks.

    The backward pass keeps nothing of the forward pass, and sums the gradients by `shared` in one
    tensor each. The gradient is given because a derived gradient of a loop would need more memory
    than the loop saves. The number of tokens may be unknown until the graph runs. The result is in
    float32 or better.

    Args:
        function: Function of the tokens `(chunk, dim)` and labels `(chunk,)` of a chunk, and of
            `shared`. It returns a tensor of shape `(chunk,)`, and must treat each token by itself.
        gradient: Function of the tokens and labels of a chunk, the gradient by its results of shape
            `(chunk,)`, and `shared`. It returns the gradients by the tokens and by each of
            `shared`.
        tokens: Floating-point tensor of shape `(num_tokens, dim)`.
        labels: Integer tensor of shape `(num_tokens,)`. It has no gradient.
        shared: Floating-point tensors that all chunks need, such as kernels.
        chunk_size: The most tokens of a chunk.
    """

    def run(*arguments: Any) -> Any:
        tokens, labels, *shared = arguments
        chunks = TokenChunks(ops.shape(tokens)[0], chunk_size)
        # Labels are an argument: if they were closed over, `keras.remat` of the layer fails on JAX.
        return current().compute.apply_with_gradient(
            partial(_compute, chunks, function),
            partial(_differentiate, chunks, gradient),
            [tokens, *shared],
            [labels],
        )

    return call_opaque(run, tokens, labels, *shared)


def _read(tensor: Any, index: Any) -> Any:
    return ops.take(tensor, index, axis=0)


def _write(tensor: Any, index: Any, chunk: Any) -> Any:
    # `slice_update` would make TensorFlow start XLA.
    update = ops.expand_dims(ops.cast(chunk, tensor.dtype), 0)
    return ops.scatter_update(tensor, ops.reshape(index, (1, 1)), update)


def _compute(chunks: TokenChunks, function: Callable[..., Any], tokens: Any, *operands: Any) -> Any:
    *shared, labels = operands
    split = [chunks.split(tensor) for tensor in (tokens, labels)]

    def compute(index: Any, results: Any) -> tuple[Any]:
        result = function(*(_read(tensor, index) for tensor in split), *shared)
        return (_write(results, index, result),)

    state = (ops.zeros((chunks.number, chunks.size), dtype=_accumulator_dtype(tokens)),)
    (results,) = current().compute.repeat(compute, chunks.number, state)
    return chunks.join(results)


def _differentiate(
    chunks: TokenChunks,
    gradient: Callable[..., Sequence[Any]],
    upstream: Any,
    tokens: Any,
    *operands: Any,
) -> tuple[Any, ...]:
    *shared, labels = operands
    split = [chunks.split(tensor) for tensor in (tokens, labels, upstream)]

    def accumulate(index: Any, by_tokens: Any, *sums: Any) -> tuple[Any, ...]:
        part, *parts = gradient(*(_read(tensor, index) for tensor in split), *shared)
        pairs = zip(sums, parts, strict=True)
        return (
            _write(by_tokens, index, part),
            *(total + ops.cast(part, total.dtype) for total, part in pairs),
        )

    state = (
        ops.zeros((chunks.number, chunks.size, tokens.shape[-1]), dtype=tokens.dtype),
        *(ops.zeros(tensor.shape, dtype=_accumulator_dtype(tensor)) for tensor in shared),
    )
    by_tokens, *sums = current().compute.repeat(accumulate, chunks.number, state)
    pairs = zip(sums, shared, strict=True)
    return chunks.join(by_tokens), *(ops.cast(total, tensor.dtype) for total, tensor in pairs)


def _accumulator_dtype(tensor: Any) -> str:
    return promote_dtypes(tensor.dtype, "float32")
