"""A check for models that mix the rows of a batch, so that answers depend on the other rows."""

from collections.abc import Sequence

import numpy as np

from keras_deepseek.artifacts.signature import Array, TensorSpec, find_dtype
from keras_deepseek.inference.executors.executor import Executor
from keras_deepseek.inference.models.warm_up import relative_difference, shape_of_batch

_TOLERANCE = 1e-4
"""The accepted difference between batches of one size, relative to the largest value."""
_TOLERANCE_OF_SIZES = 2e-2
"""The same between batches of two sizes, which half precision rounds differently."""


def find_row_dependence(executor: Executor, buckets: Sequence[int], length: int) -> str | None:
    """Returns a description of how outputs depend on the other rows, or `None` if they don't.

    The first, the middle and the last row of a batch run again, each in a batch of copies of itself
    of the same size, and once in the smallest batch. The inputs are integers 0 and 1, which are
    tokens of every vocabulary, and floats below 2, which may stand for tokens, too. `buckets` are
    sizes that the executor has run before, the smallest first; `length` is the size of free axes.
    """
    generator, rows = np.random.default_rng(0), buckets[-1]
    specs = executor.signature.inputs
    if rows == 1 or any(spec.dtype == "object" for spec in specs):
        return None
    batch = {spec.name: _draw(generator, spec, rows, length) for spec in specs}
    expected, again = executor.run(batch), executor.run(batch)
    if any(relative_difference(outputs, again[name]) for name, outputs in expected.items()):
        return None  # The model draws random numbers, or has a state.
    for row in sorted({0, rows // 2, rows - 1}):
        copies = {name: np.repeat(array[row : row + 1], rows, 0) for name, array in batch.items()}
        received = executor.run(copies)
        for name, outputs in expected.items():
            among_copies = received[name][row : row + 1]
            if relative_difference(outputs[row : row + 1], among_copies) > _TOLERANCE:
                return f"output {name!r} of a row changes with the other rows"
    small = executor.run({name: array[: buckets[0]] for name, array in copies.items()})
    for name, outputs in received.items():
        is_float = outputs.dtype.kind == "f"
        if is_float and relative_difference(outputs[:1], small[name][:1]) > _TOLERANCE_OF_SIZES:
            return f"output {name!r} of a row changes with the batch size"
    return None


def _draw(generator: np.random.Generator, spec: TensorSpec, rows: int, length: int) -> Array:
    shape = shape_of_batch(spec, rows, length)
    dtype = find_dtype(spec.dtype)
    if dtype.kind == "b":  # It is probably a mask: it hides nothing.
        return np.ones(shape, dtype)
    drawn = generator.uniform(0, 1.99, shape)
    return (np.floor(drawn) if dtype.kind in "iu" else drawn).astype(dtype)
