"""Comparison of the outputs of a model with those of an artifact or a rewritten model."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import ExportError

TOLERANCES = {"float64": 1e-6, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2, "int8": 1e-1}
"""The largest difference by dtype, as a share of the output's largest value."""

_INT8 = "int8"
_LEAST_SCALE = 1e-2
"""The least scale of which a tolerance is a share. An output that is nearly 0 may consist of
rounding errors. The probabilities of many thousand classes must not count as such."""
_LARGEST_COLUMN_ERROR = 0.1
"""The largest error of a column (root mean square), as a share of its change from row to row.

At least five times the tolerance counts, since the share of a rare class is off by as much as its
logit is."""
_LARGEST_CHANGE_ERROR = 0.25
"""The share for a whole output: with a larger error its change was not compared."""
_ROUNDING = 1
"""Units in the last place of the output's largest value. A column that changes by no more may
consist of rounding errors."""
_LEAST_MASK = 1e4
"""The least magnitude of a number that masks logits, as `-1e4`, `-65504`, `-1e9` and `-1e38` do."""
_LEAST_MASK_RATIO = 100
"""The least ratio between the magnitude of masked values and that of all others."""


@dataclass(frozen=True)
class Comparison:
    """The result of comparing outputs: number of batches, and largest absolute difference.

    Args:
        any_finite: Whether the model gave any finite value.
        constant_outputs: Outputs that hardly change from row to row, so that an artifact that
            ignores its inputs would have passed.
    """

    num_samples: int
    largest_difference: float
    any_finite: bool = True
    constant_outputs: tuple[str, ...] = ()


def compare_outputs(
    expected: list[dict[str, Array]],
    received: list[dict[str, Array]],
    precision: str | Mapping[str, str | None] | None = None,
    *,
    by_column: bool = True,
) -> Comparison:
    """Compares a model's outputs with those of an artifact or a rewritten model, batch by batch.

    Raises an `ExportError` if a name, a shape, a dtype, the place of a NaN, or a value differs.
    `expected` and `received` hold arrays by output name for each batch. `precision` is the dtype in
    which `received` was computed, for all outputs or by name; by default it is the output's dtype.
    With `by_column`, each column along the last axis is also compared by its own scale, since large
    values hide differences of small ones. Masked logits, large negative numbers such as `-1e38`,
    hide none: the tolerance is a share of the largest other value.
    """
    if len(expected) != len(received):
        raise ExportError(f"Received outputs of {len(received)} batches, expected {len(expected)}.")
    largest = 0.0
    precisions = dict(precision) if isinstance(precision, Mapping) else {}
    if isinstance(precision, str):
        precisions = dict.fromkeys(expected[0] if expected else (), precision)
    scales = _int8_scales(expected, precisions)
    for index, (reference, outputs) in enumerate(zip(expected, received, strict=True)):
        if set(reference) != set(outputs):
            raise ExportError(f"Outputs are {sorted(outputs)}; expected {sorted(reference)}.")
        for name, array in reference.items():
            try:
                difference = _largest_difference(
                    array, outputs[name], precisions.get(name), scales[name]
                )
                largest = max(largest, difference)
            except ExportError as error:
                raise ExportError(f"Output {name!r} of batch {index}: {error}") from error
    constant_outputs = []
    for name in expected[0] if expected else ():
        groups = list(_rows_by_shape(name, expected, received))
        tolerance = _tolerance(expected[0][name], precisions.get(name))
        unit = _unit(expected[0][name])
        try:
            if by_column:
                for expected_rows, received_rows in groups:
                    _check_columns(expected_rows, received_rows, tolerance, unit)
        except ExportError as error:
            raise ExportError(f"Output {name!r}: {error}") from error
        if not _changes_alike(groups):
            constant_outputs.append(name)
    any_finite = any(
        np.isfinite(array.astype("float64")).any() for batch in expected for array in batch.values()
    )
    return Comparison(len(expected), largest, any_finite, tuple(constant_outputs))


def _int8_scales(
    batches: list[dict[str, Array]], precisions: Mapping[str, str | None]
) -> Counter[str]:
    """Returns the largest magnitude in all batches of each int8 output, by which it is rounded."""
    scales: Counter[str] = Counter()
    for batch in batches:
        of_int8 = {name: array for name, array in batch.items() if precisions.get(name) == _INT8}
        # The operator takes the larger count of each name.
        scales |= Counter({name: _largest_magnitude(array) for name, array in of_int8.items()})
    return scales


def differing_places(
    expected: dict[str, Array], received: dict[str, Array], precisions: Mapping[str, str | None]
) -> dict[str, Array] | None:
    """Returns, by name, boolean arrays that are True where the outputs of a batch differ too much.

    Returns `None` if names, shapes or dtypes differ.
    """
    if set(expected) != set(received):
        return None
    differing = {}
    for name, array in expected.items():
        other = received[name]
        if (array.shape, array.dtype) != (other.shape, other.dtype):
            return None
        if str(array.dtype) not in TOLERANCES:
            differing[name] = np.asarray(array != other)
            continue
        expected_values, received_values = array.astype("float64"), other.astype("float64")
        allowed = _allowed(expected_values, _tolerance(array, precisions.get(name)))
        with np.errstate(invalid="ignore"):
            is_near = np.abs(expected_values - received_values) <= allowed
        is_same = (expected_values == received_values) | (
            np.isnan(expected_values) & np.isnan(received_values)
        )
        differing[name] = np.asarray(~(is_near | is_same))
    return differing


def _rows_by_shape(
    name: str, expected: list[dict[str, Array]], received: list[dict[str, Array]]
) -> Iterator[tuple[Array, Array]]:
    """Yields all rows of one shape, of model and artifact. Masked and infinite values become 0."""
    by_shape: dict[tuple[int, ...], list[tuple[Array, Array]]] = {}
    for reference, outputs in zip(expected, received, strict=True):
        expected_rows, received_rows = np.atleast_1d(reference[name]), np.atleast_1d(outputs[name])
        by_shape.setdefault(expected_rows.shape[1:], []).append((expected_rows, received_rows))
    for pairs in by_shape.values():
        expected_rows, received_rows = (
            np.concatenate(side).astype("float64") for side in zip(*pairs, strict=True)
        )
        counts = np.isfinite(expected_rows) & ~_is_masked(expected_rows)
        yield np.where(counts, expected_rows, 0.0), np.where(counts, received_rows, 0.0)


def _check_columns(expected: Array, received: Array, tolerance: float, unit: float) -> None:
    """Raises an error if a column differs more than its own scale allows."""
    if expected.ndim <= 1 or not expected.size:
        return
    other_axes = tuple(range(expected.ndim - 1))
    moved = np.sqrt(np.square(expected - expected.mean(0)).mean(other_axes))
    error = np.sqrt(np.square(received - expected).mean(other_axes))
    share = max(_LARGEST_COLUMN_ERROR, 5 * tolerance)
    allowed = np.maximum(tolerance * np.abs(expected).max(other_axes), share * moved)
    is_rounding = moved <= _ROUNDING * unit * np.abs(expected).max()
    excess = np.where(is_rounding, 0.0, error - allowed)
    column = int(excess.argmax())
    if excess[column] > 0:
        raise ExportError(
            f"column {column} differs by {error[column]:.3g} (root mean square), and changes by "
            f"{moved[column]:.3g} from row to row; {allowed[column]:.3g} is allowed."
        )


def _changes_alike(groups: list[tuple[Array, Array]]) -> bool:
    """Returns True if an output varies between rows, and the artifact's varies in the same way."""
    moved = sum(
        float(np.square(expected - expected.mean(0)).sum())
        for expected, _ in groups
        if len(expected)
    )
    error = sum(
        float(np.square(received - received.mean(0) - expected + expected.mean(0)).sum())
        for expected, received in groups
        if len(expected)
    )
    return moved > 0 and error <= _LARGEST_CHANGE_ERROR**2 * moved


def _largest_difference(
    expected: Array, received: Array, precision: str | None, least_scale: float
) -> float:
    """Returns the largest absolute difference, or raises an error if it is too large."""
    if expected.shape != received.shape:
        raise ExportError(f"shape {received.shape}; expected {expected.shape}.")
    if expected.dtype != received.dtype:
        raise ExportError(f"dtype {received.dtype}; expected {expected.dtype}.")
    if str(expected.dtype) not in TOLERANCES:
        if not np.array_equal(expected, received):
            raise ExportError(f"{expected.dtype} values differ; they must be equal.")
        return 0.0
    expected_values, received_values = expected.astype("float64"), received.astype("float64")
    finite = np.isfinite(expected_values)
    if not np.array_equal(expected_values[~finite], received_values[~finite], equal_nan=True):
        raise ExportError("NaN or infinity in different places.")
    expected_values, received_values = expected_values[finite], received_values[finite]
    if not np.isfinite(received_values).all():
        raise ExportError("NaN or infinity where the model gives finite values.")
    difference = np.abs(expected_values - received_values)
    allowed = _allowed(expected_values, _tolerance(expected, precision), least_scale)
    if (difference > allowed).any():
        worst = int((difference / allowed).argmax())
        raise ExportError(f"differs by {difference[worst]:.3g}; {allowed[worst]:.3g} is allowed.")
    return float(difference[~_is_masked(expected_values)].max(initial=0.0))


def _allowed(values: Array, tolerance: float, least_scale: float = 0.0) -> Array:
    scale = max(_LEAST_SCALE, least_scale, _largest_magnitude(values))
    return tolerance * np.where(_is_masked(values), np.abs(values), scale)


def _largest_magnitude(array: Array) -> float:
    """Returns the largest magnitude of an output's finite values that are not masked."""
    values = array.astype("float64")
    return float(np.abs(values[np.isfinite(values) & ~_is_masked(values)]).max(initial=0.0))


def _is_masked(values: Array) -> Array:
    """Returns True for the values of an output that a mask has made large negative numbers.

    A mask adds such a number to logits. Two masks, for example a causal and a padding mask, add it
    twice to some of them. An output of such a number and zeros alone is a mask itself: its values
    are not masked.
    """
    finite = np.where(np.isfinite(values), values, 0.0)
    least = finite.min(initial=0.0)
    if least > -_LEAST_MASK:
        return np.zeros(values.shape, bool)
    # Masked values are near the least one, or near its half where only one of two masks applies.
    share, near = finite / least, 2 / _LEAST_MASK_RATIO
    is_masked = np.asarray((np.abs(share - 1) < near) | (np.abs(share - 0.5) < near))
    largest_other = np.abs(finite[~is_masked]).max(initial=0.0)
    return is_masked & bool(0 < largest_other * _LEAST_MASK_RATIO <= -least)


def _unit(array: Array) -> float:
    """Returns a unit in the last place of 1 in the output's dtype, for bfloat16 and others 2^-7."""
    is_float = str(array.dtype) in TOLERANCES and array.dtype.kind == "f"
    return float(np.finfo(array.dtype).eps) if is_float else 2.0**-7


def _tolerance(expected: Array, precision: str | None) -> float:
    names = [name for name in (str(expected.dtype), precision) if name]
    return max(TOLERANCES.get(name, 0.0) for name in names)


def agreements(
    expected: list[dict[str, Array]], received: list[dict[str, Array]]
) -> dict[str, dict[str, float]]:
    """Returns by output how close an artifact's outputs are to the model's, by two measures.

    `"relative_error"` is the root mean square of the differences, divided by the root mean square
    of the model's values; masked logits don't count. `"same_largest"` is the share of rows, along
    the last axis, whose largest value is at the same index: for a classifier, the same answer.
    """
    return {name: _agreement(name, expected, received) for name in expected[0]}


def _agreement(
    name: str, expected: list[dict[str, Array]], received: list[dict[str, Array]]
) -> dict[str, float]:
    pairs = [
        (reference[name].astype("float64"), outputs[name].astype("float64"))
        for reference, outputs in zip(expected, received, strict=True)
    ]
    error = sum(
        float(np.square((received_values - expected_values)[~_is_masked(expected_values)]).sum())
        for expected_values, received_values in pairs
    )
    size = sum(
        float(np.square(expected_values[~_is_masked(expected_values)]).sum())
        for expected_values, _ in pairs
    )
    measures = {"relative_error": float(np.sqrt(error / size)) if size else float(error > 0)}
    if all(
        expected_values.ndim > 1 and expected_values.shape[-1] > 1 for expected_values, _ in pairs
    ):
        same = np.concatenate(
            [
                (expected_values.argmax(-1) == received_values.argmax(-1)).reshape(-1)
                for expected_values, received_values in pairs
            ]
        )
        measures["same_largest"] = float(same.mean())
    return measures
