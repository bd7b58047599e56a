"""Computation of a function in chunks of tokens, to save memory for intermediates.

One way has automatic gradients, the other a gradient given by the caller.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import keras
from keras import ops

from keras_deepseek.backend import current
from keras_deepseek.backend.call_context import known_size
from keras_deepseek.layers.double_precision import promote_dtypes
from keras_deepseek.layers.opaque_operation import call_opaque


class TokenChunks:
    """The split of a token axis into chunks of equal size, the last one padded with zeros.

    A chunk takes every `number`-th token. The tokens of each device then stay on it if they are
    sharded; consecutive tokens would all be on one device.
    """

    def __init__(self, num_tokens: Any, size: int, axis: int = 0) -> None:
        if isinstance(num_tokens, int):
            size = max(1, min(size, num_tokens))
        self.num_tokens = num_tokens
        self.size = size
        self.number = -(-num_tokens // size)
        if isinstance(self.number, int):
            self.number = max(1, self.number)  # In some frameworks an empty loop has no result.
        self._axis = axis
        self._padding = self.number * size - num_tokens

    def split(self, tensor: Any) -> Any:
        """Reshapes `(..., num_tokens, ...)` to `(number, ..., size, ...)`."""
        leading, trailing = self._sizes_around(tensor, 1)
        if not isinstance(self._padding, int) or self._padding:
            filling = ops.zeros((*leading, self._padding, *trailing), dtype=tensor.dtype)
            tensor = ops.concatenate([tensor, filling], axis=self._axis)
        tensor = ops.reshape(tensor, (*leading, self.size, self.number, *trailing))
        return ops.moveaxis(tensor, self._axis + 1, 0)

    def join(self, tensor: Any) -> Any:
        """Joins chunks `(number, ..., size, ...)` to one tensor `(..., num_tokens, ...)`."""
        tensor = ops.moveaxis(tensor, 0, self._axis + 1)
        leading, trailing = self._sizes_around(tensor, 2)
        tensor = ops.reshape(tensor, (*leading, self.size * self.number, *trailing))
        return tensor[(slice(None),) * self._axis + (slice(0, self.num_tokens),)]

    def _sizes_around(self, tensor: Any, num_axes: int) -> tuple[Any, Any]:
        shape = ops.shape(tensor)
        return shape[: self._axis], shape[self._axis + num_axes :]


def map_chunks(
    function: Callable[[dict[str, Any]], Any],
    rows: Mapping[str, Any],
    fixed: Mapping[str, Any],
    shared: Mapping[str, Any],
    chunk_size: int,
    *,
    constants: Mapping[str, Any] | None = None,
    axis: int = 0,
    recomputes: bool = True,
) -> Any:
    """Computes `function(rows | fixed | shared | constants)` and its gradient chunk by chunk.

    The number of tokens may be unknown until the graph runs.

    Args:
        function: Function of a dict: chunks of `rows` and of `fixed`, `shared` and `constants`. It
            returns a tensor or a tuple of tensors with the tokens of the chunk along `axis`, and
            must treat each token by itself.
        rows: Floating-point tensors with the tokens along `axis`.
        fixed: Tensors with the tokens along `axis` that have no gradient, such as integers.
        shared: Floating-point tensors that all chunks need, such as kernels.
        chunk_size: The most tokens of a chunk.
        constants: Tensors or integers without a gradient that all chunks need, such as masks.
        axis: The axis of the tokens, counted from the first.
        recomputes: If true, the backward pass recomputes each chunk and keeps no intermediates.
    """
    chunks = TokenChunks(ops.shape(next(iter(rows.values())))[axis], chunk_size, axis)
    constants = constants or {}
    tensors = {**rows, **fixed, **shared, **constants}

    def compute(chunk: Mapping[str, Any]) -> Any:
        floats = {name: chunk[name] for name in (*rows, *shared)}
        # These are closed over, because TensorFlow warns about gradients by integers.
        without_gradient = {name: chunk[name] for name in (*fixed, *constants)}

        def run(*values: Any) -> Any:
            return function(without_gradient | dict(zip(floats, values, strict=True)))

        return (keras.remat(run) if recomputes else run)(*floats.values())

    def compute_all(*values: Any) -> Any:
        arguments = dict(zip(tensors, values, strict=True))
        unsplit = {name: arguments[name] for name in (*shared, *constants)}
        split = {name: chunks.split(arguments[name]) for name in (*rows, *fixed)}
        results = ops.map(lambda chunk: compute(chunk | unsplit), split)
        return keras.tree.map_structure(chunks.join, results)

    # A traced program has no loop, so it computes all chunks at once.
    if isinstance(chunks.number, int) and known_size(chunks.number) in (None, 1):
        return compute(tensors)
    return call_opaque(compute_all, *tensors.values())


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
    """Returns the function's results (num_tokens); `operands` are `shared` and then the labels."""
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
    """Returns the gradients by the tokens and `shared`; `upstream` is that by the results."""
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
