"""One random batch of inputs that fit a model."""

from collections.abc import Iterator, Mapping

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array, Signature, TensorSpec
from keras_deepseek.backend.keras_private.sample_ranges import SampleRange, find_sample_ranges

_DEFAULT_VOCABULARY, _BINARY_VOCABULARY = 10, 2
"""The number of values of an integer input that no layer looks up; and of a binary one.

In a binary input, 0 does not stand for padding."""


def draw_batch(
    model: keras.Model,
    signature: Signature,
    shapes: Mapping[str, tuple[int, ...]],
    seed: int | None = None,
) -> dict[str, Array]:
    """Returns a random batch of given input shapes, which include the batch axis.

    It is the same for the same seed, which defaults to the number of rows.
    """
    batch_size = next((shape[0] for shape in shapes.values() if shape), 1)
    generator = np.random.default_rng(batch_size if seed is None else seed)
    drawn = {}
    ranges = find_sample_ranges(model, len(signature.inputs))
    for spec, sample_range in zip(signature.inputs, ranges, strict=True):
        array = _draw(generator, spec, shapes[spec.name], sample_range)
        if (
            sample_range.values is None
            and sample_range.scale is not None
            and array.dtype.kind == "f"
        ):
            mean, deviation = sample_range.scale
            array = (mean + deviation * array).astype(array.dtype)
        if sample_range.mask_value is not None and array.ndim > 1 and array.dtype.kind != "b":
            array[0, array.shape[1] - array.shape[1] // 3 :] = sample_range.mask_value
        drawn[spec.name] = array
    return drawn


def batch_shapes(
    signature: Signature, batch_size: int, lengths: Iterator[int]
) -> dict[str, tuple[int, ...]]:
    """Returns each input's shape, where free axes take the next of `lengths`."""
    return {
        spec.name: tuple(
            size if size is not None else (batch_size if axis == 0 else next(lengths))
            for axis, size in enumerate(spec.shape)
        )
        for spec in signature.inputs
    }


def _draw(
    generator: np.random.Generator,
    spec: TensorSpec,
    shape: tuple[int, ...],
    sample_range: SampleRange,
) -> Array:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "b":
        return generator.integers(0, 2, size=shape).astype(bool)
    if sample_range.values is not None:
        values = sample_range.values.of_dtype(dtype, sample_range.vocabulary_size)
        if sample_range.mask_value is not None:
            values = values[values != sample_range.mask_value]
        if len(values):
            return generator.choice(values, size=shape)
    if dtype.kind == "f":
        return generator.normal(size=shape).astype(dtype)
    vocabulary = sample_range.vocabulary_size or _DEFAULT_VOCABULARY
    array = generator.integers(vocabulary > _BINARY_VOCABULARY, vocabulary, size=shape).astype(
        dtype
    )
    if array.ndim > 1:
        array[0, array.shape[1] - array.shape[1] // 3 :] = 0
    return array
