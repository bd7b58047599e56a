"""Random batches that fit the inputs of a model, and names of the inputs' free axes."""

from collections.abc import Callable, Iterator, Mapping

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


Shapes = Mapping[str, tuple[int | str, ...]]
"""The shape of each input by name. An axis is a size, or the name of a free axis."""

BATCH = "batch"


def with_named_axes(signature: Signature, trace: Callable[[Shapes], None]) -> None:
    """Traces a model with a name of its own for each free axis.

    If that fails, the same axis of all inputs has one name. `trace` takes the shapes of the inputs.
    """
    try:
        trace(name_axes(signature, are_shared=False))
    except Exception:  # Exporters raise any error.
        if count_free_lengths(signature) <= 1:
            raise
        trace(name_axes(signature, are_shared=True))


def count_free_lengths(signature: Signature) -> int:
    """Returns the number of axes of any size in a model's inputs, without the batch axes."""
    return sum(size is None for spec in signature.inputs for size in spec.shape[1:])


def name_axes(signature: Signature, *, are_shared: bool) -> Shapes:
    """Returns the shapes of a model's inputs, with names in place of the sizes of free axes.

    The first axis is the batch axis. `are_shared` gives free axes at the same position of two
    inputs one name.
    """

    def name(owner: str, axis: int) -> str:
        if axis == 0:
            return BATCH
        return f"axis_{axis}" if are_shared else f"{owner}_axis_{axis}"

    return {
        spec.name: tuple(
            name(spec.name, axis) if size is None else size for axis, size in enumerate(spec.shape)
        )
        for spec in signature.inputs
    }
