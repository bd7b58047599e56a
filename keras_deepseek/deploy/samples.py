"""Batches to verify an export on."""

from collections.abc import Iterator

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array, Signature, TensorSpec
from keras_deepseek.backend.keras_internals import flatten_layers

_BATCH_SIZES = (1, 3, 4)
_LENGTHS = (16, 9, 13)
"""One length a batch for the free axes, so that a shape that was baked in shows."""


def make_samples(model: keras.Model, signature: Signature) -> list[dict[str, Array]]:
    """Returns random batches of several sizes and lengths that fit a model.

    Floats are drawn from a standard normal distribution. Integers are drawn below the smallest
    vocabulary of the model's embeddings, and end in zeros in the first row, as padding does.

    Args:
        model: `keras.Model`.
        signature: Its signature.

    Returns:
        A list of dicts of arrays by input name.
    """
    generator = np.random.default_rng(0)
    vocabulary = min(_vocabularies(model), default=10)
    return [
        {
            spec.name: _draw(generator, spec, batch_size, length, vocabulary)
            for spec in signature.inputs
        }
        for batch_size, length in zip(_BATCH_SIZES, _LENGTHS, strict=True)
    ]


def _vocabularies(model: keras.Model) -> Iterator[int]:
    for layer in flatten_layers(model):
        if isinstance(layer, keras.layers.Embedding):
            yield layer.input_dim


def _draw(
    generator: np.random.Generator, spec: TensorSpec, batch_size: int, length: int, vocabulary: int
) -> Array:
    shape = [
        size if size is not None else (batch_size if axis == 0 else length)
        for axis, size in enumerate(spec.shape)
    ]
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return generator.normal(size=shape).astype(dtype)
    if dtype.kind == "b":
        return generator.integers(0, 2, size=shape).astype(bool)
    array = generator.integers(1, max(vocabulary, 2), size=shape).astype(dtype)
    if array.ndim > 1:
        array[0, -(array.shape[1] // 3) :] = 0
    return array
