"""Batches that the Exporter did not verify on, and what the model itself computes for them."""

import itertools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from integration_tests.export_matrix.models import RANGES
from keras_deepseek.artifacts.signature import Signature, TensorSpec

Batch = dict[str, Any]
SIZES = ((2, (7,)), (7, (21,)), (6, (10,)), (2, (8, 21, 12, 17)))
"""Batch sizes, and lengths for the free axes in turn: none of them does the Exporter use."""
TOLERANCE, OF_HALF_PRECISION = 1e-4, 1e-2
"""The largest difference, as a share of the largest value: the Exporter's own."""
_LEAST_SCALE = 1e-2


def draw_batches(model: keras.Model, signature: Signature) -> Iterator[Batch]:
    """Yields batches by input name. Rows end in zeros, as padding does, and are of any length."""
    generator = np.random.default_rng(2026)
    for batch_size, lengths in SIZES:
        turns = itertools.cycle(lengths)
        yield {
            spec.name: _draw(generator, spec, _vocabulary(model), batch_size, turns)
            for spec in signature.inputs
        }


def _vocabulary(model: keras.Model) -> int:
    layers = model._flatten_layers(include_self=False)
    sizes = [layer.input_dim for layer in layers if isinstance(layer, keras.layers.Embedding)]
    return max(sizes, default=10)


def _draw(
    generator: np.random.Generator,
    spec: TensorSpec,
    vocabulary: int,
    batch_size: int,
    lengths: Iterator[int],
) -> Any:
    shape = [batch_size, *(next(lengths) if size is None else size for size in spec.shape[1:])]
    dtype = np.dtype(spec.dtype)
    below = RANGES.get(spec.name, vocabulary)
    if dtype.kind == "f":
        array = generator.normal(size=shape)
    elif dtype.kind == "b":
        array = generator.integers(0, 2, size=shape)
    else:
        array = generator.integers(min(1, below - 1), below, size=shape)
    is_padded = dtype.kind in "iu" or None in spec.shape[1:2]
    if is_padded and len(shape) > 1 and spec.name not in ("segment_ids", "places"):
        for row in range(1, batch_size):
            array[row, generator.integers(1, shape[1] + 1) :] = 0
    return array.astype(dtype)


def compute(model: keras.Model, signature: Signature, batch: Batch) -> Batch:
    """Returns the model's outputs by name, by Keras alone."""
    names = [spec.name for spec in signature.inputs]
    given: Any = batch[names[0]] if len(names) == 1 else dict(batch)
    if isinstance(getattr(model, "input", None), list):
        given = [batch[name] for name in names]
    if keras.backend.backend() == "jax":  # Eagerly it compiles each operation.
        outputs = model.predict(given, verbose=0)
    else:
        outputs = model(given, training=False)
    arrays = [keras.ops.convert_to_numpy(each) for each in keras.tree.flatten(outputs)]
    if isinstance(outputs, dict):
        return dict(zip(keras.tree.flatten({key: key for key in outputs}), arrays, strict=True))
    return dict(zip((spec.name for spec in signature.outputs), arrays, strict=True))


def tolerance(model: keras.Model) -> float:
    """Returns what an artifact of a model may differ by."""
    is_half = any(layer.compute_dtype == "float16" for layer in model._flatten_layers())
    return OF_HALF_PRECISION if is_half else TOLERANCE


def difference(expected: Batch, received: Batch) -> float:
    """Returns the largest difference of an artifact's outputs, as a share of their largest value.

    It is infinite where names, shapes or dtypes differ, or the places of what is not finite.
    """
    if set(expected) != set(received):
        return float("inf")
    return max(_difference(array, received[name]) for name, array in expected.items())


def _difference(expected: Any, received: Any) -> float:
    if expected.shape != received.shape or expected.dtype != received.dtype:
        return float("inf")
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(expected, received) else float("inf")
    left, right = expected.astype("float64"), received.astype("float64")
    finite = np.isfinite(left)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
        return float("inf")
    scale = max(_LEAST_SCALE, np.abs(left[finite]).max(initial=0.0))
    found = np.abs(left[finite] - right[finite]).max(initial=0.0) / scale
    return float(found) if np.isfinite(found) else float("inf")
