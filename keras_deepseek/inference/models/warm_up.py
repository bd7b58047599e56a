"""The warm-up of a version: it runs every batch size, and checks padding and rows of a batch."""

import time
from collections.abc import Sequence

import numpy as np

from keras_deepseek.artifacts.signature import Array, TensorSpec, find_dtype
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.batching.batch import check_rows
from keras_deepseek.inference.batching.batch_time import BatchTime
from keras_deepseek.inference.batching.padding import Padder
from keras_deepseek.inference.executors.executor import Executor, check_outputs

TOLERANCES = {"float16": 1e-2, "bfloat16": 5e-2, "float32": 1e-3, "float64": 1e-6}
"""The difference between a padded and an unpadded row that is accepted, relative to the largest
value of the output. Other dtypes must be equal."""


_LEAST_SCALE = 1e-2
"""Values below it count as differences from zero, not relative to themselves."""

_TOLERANCE = 1e-4
"""The accepted difference between batches of one size, relative to the largest value."""

_TOLERANCE_OF_SIZES = 2e-2
"""The tolerance between batches of two sizes, which half precision rounds differently."""


def run_every_size(
    executors: Sequence[Executor],
    buckets: Sequence[int],
    lengths: Sequence[int],
    batch_time: BatchTime,
) -> None:
    """Runs each batch size once in each executor, and again in the first to measure its time.

    A model that takes strings is not run: it may expect serialized examples or image files. A model
    with free axes is not run if `lengths` is empty. The times are added to `batch_time`.
    """
    specs = executors[0].signature.inputs
    is_free = any(size is None for spec in specs for size in spec.shape[1:])
    takes_strings = any(spec.dtype == "object" for spec in specs)
    if takes_strings or (is_free and not lengths):
        return
    for length in lengths if is_free else (1,):
        for rows in buckets:
            inputs = {
                spec.name: np.zeros(_shape_of_batch(spec, rows, length), find_dtype(spec.dtype))
                for spec in specs
            }
            for executor in executors:
                outputs = _run(executor, inputs, rows)
                check_outputs(outputs, executor.signature)
                check_rows(outputs, rows)
            start = time.monotonic()
            executors[0].run(inputs)  # The first call may have compiled.
            batch_time.add(rows, time.monotonic() - start)


def check_padding(executor: Executor, padder: Padder, lengths: Sequence[int], rows: int) -> None:
    """Compares padded rows with unpadded ones, and refuses a model that reads padding as data.

    `lengths` are the padded lengths, rising; `rows` is a batch size of the model.
    """
    length = next((size for size in range(lengths[-1] - 1, 0, -1) if size not in lengths), None)
    if length is None:
        return
    generator = np.random.default_rng(0)
    inputs = {spec.name: _random(generator, spec, rows, length) for spec in padder.signature.inputs}
    masks = {
        spec.name: np.ones((rows, length), find_dtype(spec.dtype))
        for spec in executor.signature.inputs
        if spec.name not in inputs
    }
    alone = executor.run({**inputs, **masks})
    padded = padder.cut(executor.run(padder.fill(inputs)), inputs)
    for name, expected in alone.items():
        difference = relative_difference(expected, padded[name])
        if difference > TOLERANCES.get(str(expected.dtype), 0.0):
            raise InvalidInputError(
                f"Padding changes the answers: output {name!r} of rows of length {length} differs "
                f"by {difference:.2g} of its largest value if they are padded. Give `values` and "
                "`masks` by which the model recognizes padding, or serve it without `padding`."
            )


def relative_difference(expected: Array, received: Array) -> float:
    """Returns the largest difference of two arrays, divided by the largest finite expected value.

    NaN equals NaN. The result is infinite if the shapes differ, if strings differ, or if a value is
    finite in one array alone.
    """
    if expected.shape != received.shape:
        return float("inf")
    if expected.dtype.kind in "OSU":
        return 0.0 if np.array_equal(expected, received) else float("inf")
    expected, received = expected.astype("float64"), received.astype("float64")
    is_same = (expected == received) | (np.isnan(expected) & np.isnan(received))
    if is_same.all():
        return 0.0
    is_finite = np.isfinite(expected) & np.isfinite(received)
    if not (is_same | is_finite).all():
        return float("inf")
    largest = np.abs(expected[np.isfinite(expected)]).max()
    return float(np.abs(expected - received)[~is_same].max() / max(largest, _LEAST_SCALE))


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


def _shape_of_batch(spec: TensorSpec, rows: int, length: int) -> tuple[int, ...]:
    """Returns an input's shape with a given number of rows and one length for all free axes."""
    return (rows, *(length if size is None else size for size in spec.shape[1:]))


def _run(executor: Executor, inputs: dict[str, Array], rows: int) -> dict[str, Array]:
    try:
        return executor.run(inputs)
    except Exception as error:
        error.add_note(f"A batch of {rows} rows raised it.")
        raise


def _random(generator: np.random.Generator, spec: TensorSpec, rows: int, length: int) -> Array:
    sizes = _shape_of_batch(spec, rows, length)
    dtype = find_dtype(spec.dtype)
    if dtype.kind in "iub":
        return np.ones(sizes, dtype)  # The token 1 is in every vocabulary.
    return generator.normal(size=sizes).astype(dtype)


def _draw(generator: np.random.Generator, spec: TensorSpec, rows: int, length: int) -> Array:
    shape = _shape_of_batch(spec, rows, length)
    dtype = find_dtype(spec.dtype)
    if dtype.kind == "b":  # It is probably a mask: it hides nothing.
        return np.ones(shape, dtype)
    drawn = generator.uniform(0, 1.99, shape)
    return (np.floor(drawn) if dtype.kind in "iu" else drawn).astype(dtype)
