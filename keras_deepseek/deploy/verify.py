"""Whether an artifact computes what its model computes."""

from dataclasses import dataclass

import numpy as np

from keras_deepseek.artifacts.errors import ExportError
from keras_deepseek.artifacts.signature import Array

TOLERANCES = {"float64": 1e-6, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2, "int8": 1e-1}
"""The largest difference by dtype, as a share of the output's largest value."""

_LEAST_SCALE = 1e-2
"""What an output's largest value counts for at least: what is nearly nothing may be what rounding
left, but the probabilities of many thousand classes are not to pass for that."""


@dataclass(frozen=True)
class Comparison:
    """What was compared: batches, the largest absolute difference, and whether that says much."""

    num_samples: int
    largest_difference: float
    any_finite: bool = True


def compare(
    expected: list[dict[str, Array]],
    received: list[dict[str, Array]],
    precision: str | None = None,
) -> Comparison:
    """Compares the outputs of a model and of its artifact, by name.

    Args:
        expected: For each batch the model's outputs by name.
        received: For each batch the artifact's.
        precision: string. What the artifact computes in, where that is not the outputs' dtype.
            Defaults to `None`.

    Returns:
        A `Comparison`.

    Raises:
        ExportError: A name, a shape, a dtype, the place of a NaN, or a value differs. The message
            says which output of which batch.
    """
    if len(expected) != len(received):
        raise ExportError(f"{len(received)} batches came back of {len(expected)}.")
    largest = 0.0
    for index, (reference, outputs) in enumerate(zip(expected, received, strict=True)):
        if set(reference) != set(outputs):
            raise ExportError(f"Outputs are {sorted(outputs)}; expected {sorted(reference)}.")
        for name, array in reference.items():
            try:
                largest = max(largest, _difference(array, outputs[name], precision))
            except ExportError as error:
                raise ExportError(f"Output {name!r} of batch {index}: {error}") from error
    any_finite = any(
        np.isfinite(array.astype("float64")).any() for batch in expected for array in batch.values()
    )
    return Comparison(len(expected), largest, any_finite)


def _difference(expected: Array, received: Array, precision: str | None) -> float:
    """Returns the largest absolute difference, or raises where it is beyond the tolerance."""
    if expected.shape != received.shape:
        raise ExportError(f"shape {received.shape}; expected {expected.shape}.")
    if expected.dtype != received.dtype:
        raise ExportError(f"dtype {received.dtype}; expected {expected.dtype}.")
    if str(expected.dtype) not in TOLERANCES:
        if not np.array_equal(expected, received):
            raise ExportError(f"{expected.dtype} values differ; they must be equal.")
        return 0.0
    left, right = expected.astype("float64"), received.astype("float64")
    finite = np.isfinite(left)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
        raise ExportError("NaN or infinity in different places.")
    left, right = left[finite], right[finite]
    if not np.isfinite(right).all():
        raise ExportError("NaN or infinity where the model gives finite values.")
    difference = float(np.abs(left - right).max(initial=0.0))
    tolerance = max(TOLERANCES[name] for name in (str(expected.dtype), precision) if name)
    allowed = tolerance * max(_LEAST_SCALE, float(np.abs(left).max(initial=0.0)))
    if difference > allowed:
        raise ExportError(f"differs by {difference:.3g}; {allowed:.3g} is allowed.")
    return difference


def agreements(
    expected: list[dict[str, Array]], received: list[dict[str, Array]]
) -> dict[str, dict[str, float]]:
    """Returns how near an artifact's outputs are to the model's, over all rows, by output name.

    `"relative_error"` is the root of the mean square of the differences, as a share of the root of
    the mean square of the model's values. `"same_largest"` is the share of rows, along the last
    axis, whose largest value stands in the same place: for classifiers, the same answer.

    Args:
        expected: For each batch the model's outputs by name.
        received: For each batch the artifact's.
    """
    return {name: _agreement(name, expected, received) for name in expected[0]}


def _agreement(
    name: str, expected: list[dict[str, Array]], received: list[dict[str, Array]]
) -> dict[str, float]:
    pairs = [
        (left[name].astype("float64"), right[name].astype("float64"))
        for left, right in zip(expected, received, strict=True)
    ]
    error = sum(float(np.square(right - left).sum()) for left, right in pairs)
    size = sum(float(np.square(left).sum()) for left, _ in pairs)
    found = {"relative_error": float(np.sqrt(error / size)) if size else float(error > 0)}
    if all(left.ndim > 1 and left.shape[-1] > 1 for left, _ in pairs):
        same = np.concatenate(
            [(left.argmax(-1) == right.argmax(-1)).reshape(-1) for left, right in pairs]
        )
        found["same_largest"] = float(same.mean())
    return found
