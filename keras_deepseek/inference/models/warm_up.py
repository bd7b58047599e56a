"""What a version runs before it is asked: every batch size that it will see, and a filled row."""

import time
from collections.abc import Mapping, Sequence

import numpy as np

from keras_deepseek.artifacts.signature import Array, Signature, TensorSpec, find_dtype
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.batching.batch import check_rows
from keras_deepseek.inference.batching.batch_time import BatchTime
from keras_deepseek.inference.batching.padding import Padder
from keras_deepseek.inference.executors.executor import Executor

TOLERANCES = {"float16": 1e-2, "bfloat16": 5e-2, "float32": 1e-3, "float64": 1e-6}
"""What may differ of an output's largest value, where a row runs filled; integers may not."""


def run_every_size(
    executors: Sequence[Executor],
    buckets: Sequence[int],
    lengths: Sequence[int],
    batch_time: BatchTime,
) -> None:
    """Runs each size once in each executor, and once more in the first to see how long it takes.

    A model that takes strings is not run: which of them it knows to read, as serialized examples or
    files of images, can't be told.

    Args:
        executors: sequence of `Executor`, of one model.
        buckets: sequence of integers. Batch sizes.
        lengths: sequence of integers. Those of free axes; where there are none, a model with free
            axes is not run.
        batch_time: `BatchTime`. Learns how long a batch takes.

    Raises:
        InvalidInputError: The model gives other outputs than its signature says.
        NotSupportedError: It does not give a row for each row.
    """
    specs = executors[0].signature.inputs
    is_free = any(size is None for spec in specs for size in spec.shape[1:])
    takes_strings = any(spec.dtype == "object" for spec in specs)
    if takes_strings or (is_free and not lengths):
        return
    for length in lengths if is_free else (1,):
        for rows in buckets:
            inputs = {spec.name: _zeros(spec, rows, length) for spec in specs}
            for executor in executors:
                outputs = _run(executor, inputs, rows)
                _check_names(outputs, executor.signature)
                check_rows(outputs, rows)
            start = time.monotonic()
            executors[0].run(inputs)  # The first call may have compiled: it tells nothing.
            batch_time.add(rows, time.monotonic() - start)


def check_padding(executor: Executor, padder: Padder, lengths: Sequence[int], rows: int) -> None:
    """Runs a row alone and filled, and refuses a model that takes the padding for data.

    Args:
        executor: `Executor`.
        padder: `Padder` of its model.
        lengths: sequence of integers. Those that axes are filled up to.
        rows: integer. A batch size that the model sees.

    Raises:
        InvalidInputError: An output differs.
    """
    length = next((one for one in range(lengths[-1] - 1, 0, -1) if one not in lengths), None)
    if length is None:
        return
    generator = np.random.default_rng(0)
    inputs = {spec.name: _random(generator, spec, rows, length) for spec in padder.signature.inputs}
    masks = {
        spec.name: np.ones((rows, length), find_dtype(spec.dtype))
        for spec in _without(executor.signature, padder.signature)
    }
    alone = executor.run({**inputs, **masks})
    filled = padder.cut(executor.run(padder.fill(inputs)), inputs)
    for name, expected in alone.items():
        difference = _difference(expected, filled[name])
        if difference > TOLERANCES.get(str(expected.dtype), 0.0):
            raise InvalidInputError(
                f"Padding changes the answers: output {name!r} of rows of length {length} differs "
                f"by {difference:.2g} of its largest value where they are filled. Give `values` "
                "and `masks` by which the model knows what is padding, or serve it without."
            )


def shape_of_batch(spec: TensorSpec, rows: int, length: int) -> tuple[int, ...]:
    """Returns the shape of an input with so many rows, each free axis of one length."""
    return (rows, *(length if size is None else size for size in spec.shape[1:]))


def _run(executor: Executor, inputs: dict[str, Array], rows: int) -> dict[str, Array]:
    try:
        return executor.run(inputs)
    except Exception as error:
        error.add_note(f"It was raised by a batch of {rows} rows.")
        raise


def _check_names(outputs: object, signature: Signature) -> None:
    expected = [spec.name for spec in signature.outputs]
    found = list(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
    if not isinstance(outputs, Mapping) or set(outputs) != set(expected):
        raise InvalidInputError(
            f"The model gave the outputs {found}; its signature says {expected}. `run` returns a "
            "dict of arrays by these names."
        )


def _zeros(spec: TensorSpec, rows: int, length: int) -> Array:
    return np.zeros(shape_of_batch(spec, rows, length), find_dtype(spec.dtype))


def _random(generator: np.random.Generator, spec: TensorSpec, rows: int, length: int) -> Array:
    sizes = shape_of_batch(spec, rows, length)
    dtype = find_dtype(spec.dtype)
    if dtype.kind in "iub":
        # What every vocabulary has.
        return np.ones(sizes, dtype)
    return generator.normal(size=sizes).astype(dtype)


def _without(signature: Signature, kept: Signature) -> list[TensorSpec]:
    names = {spec.name for spec in kept.inputs}
    return [spec for spec in signature.inputs if spec.name not in names]


def _difference(expected: Array, received: Array) -> float:
    """Returns the largest difference, as a part of the largest value."""
    if expected.shape != received.shape:
        return float("inf")
    if expected.dtype.kind not in "fV" or not expected.size:
        return float(np.any(expected != received))
    left, right = expected.astype("float64"), received.astype("float64")
    return float(np.max(np.abs(left - right)) / max(float(np.max(np.abs(left))), 1e-2))
