"""A check for models that mix the rows of a batch, so that answers depend on who shares it."""

from collections.abc import Sequence

import numpy as np

from keras_deepseek.artifacts.signature import Array, TensorSpec, find_dtype
from keras_deepseek.inference.executors.executor import Executor
from keras_deepseek.inference.models.warm_up import shape_of_batch

_TOLERANCE = 1e-4
"""What may differ, of a row's largest value, between batches of one size."""
_TOLERANCE_OF_SIZES = 2e-2
"""The same between batches of two sizes, which half precision rounds differently."""


def find_row_dependence(executor: Executor, buckets: Sequence[int], length: int) -> str | None:
    """Returns in words how a row's answer depends on the others in its batch, `None` if it doesn't.

    The first, the middle and the last row of a batch run again among copies of themselves, in a
    batch of the same size, whose rows a model computes alike; and the first in the smallest batch.
    Whole numbers are 0 and 1, which are tokens of every vocabulary, and other numbers are below 2:
    they may be tokens too.

    Args:
        executor: `Executor`, that has run each size.
        buckets: sequence of integers. Batch sizes, the smallest first.
        length: integer. The size of free axes.
    """
    generator, rows = np.random.default_rng(0), buckets[-1]
    specs = executor.signature.inputs
    if rows == 1 or any(spec.dtype == "object" for spec in specs):
        return None
    batch = {spec.name: _draw(generator, spec, rows, length) for spec in specs}
    expected, again = executor.run(batch), executor.run(batch)
    if any(_difference(outputs, again[name]) for name, outputs in expected.items()):
        return None  # It draws random numbers, or knows of earlier requests.
    for row in sorted({0, rows // 2, rows - 1}):
        copies = {name: np.repeat(array[row : row + 1], rows, 0) for name, array in batch.items()}
        received = executor.run(copies)
        for name, outputs in expected.items():
            if _difference(outputs[row], received[name][row]) > _TOLERANCE:
                return f"output {name!r} of a row is another when the rows beside it are"
    small = executor.run({name: array[: buckets[0]] for name, array in copies.items()})
    for name, outputs in received.items():
        is_float = outputs.dtype.kind == "f"
        if is_float and _difference(outputs[0], small[name][0]) > _TOLERANCE_OF_SIZES:
            return f"output {name!r} of a row is another in a smaller batch"
    return None


def _draw(generator: np.random.Generator, spec: TensorSpec, rows: int, length: int) -> Array:
    shape = shape_of_batch(spec, rows, length)
    dtype = find_dtype(spec.dtype)
    if dtype.kind == "b":  # A mask, which is to hide nothing.
        return np.ones(shape, dtype)
    drawn = generator.uniform(0, 1.99, shape)
    return (np.floor(drawn) if dtype.kind in "iu" else drawn).astype(dtype)


def _difference(expected: Array, received: Array) -> float:
    """Returns the largest difference, as a part of the largest finite value."""
    left, right = np.asarray(expected, "float64"), np.asarray(received, "float64")
    is_same = (left == right) | (np.isnan(left) & np.isnan(right))
    if is_same.all():
        return 0.0
    is_finite = np.isfinite(left) & np.isfinite(right)
    if not (is_same | is_finite).all():
        return float("inf")
    largest = np.abs(left[np.isfinite(left)]).max()
    return float(np.abs(left - right)[~is_same].max() / max(largest, 1e-2))
