"""Whether an artifact computes what its model computes."""

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
"""What an output's largest value counts for at least: what is nearly nothing may be what rounding
left, but the probabilities of many thousand classes are not to pass for that."""
_SHARE_OF_MOVEMENT = 0.1
"""What a column may be off by, by root mean square, of how much it moves from row to row; or five
times the tolerance, since the share of a rare class is off by as much as its logit is."""
_TOLD_BY = 0.25
"""The same for a whole output whose movement the tolerance hides, to count as compared."""
_ROUNDING = 1
"""A column that moves by no more units in the last place of the output's largest value may be what
a difference of such values left."""


@dataclass(frozen=True)
class Comparison:
    """What was compared, and whether that says much.

    Args:
        num_samples: integer. Batches.
        largest_difference: float. The largest absolute one.
        any_finite: boolean. Whether the model gave any finite value.
        untold: tuple of strings. Outputs that an artifact would have passed with that computes the
            same for all rows.
    """

    num_samples: int
    largest_difference: float
    any_finite: bool = True
    untold: tuple[str, ...] = ()


def compare(
    expected: list[dict[str, Array]],
    received: list[dict[str, Array]],
    precision: str | Mapping[str, str | None] | None = None,
    *,
    by_column: bool = True,
) -> Comparison:
    """Compares the outputs of a model and of its artifact, by name.

    Args:
        expected: For each batch the model's outputs by name.
        received: For each batch the artifact's.
        precision: string, or a dict of strings by output name. What the artifact computes in,
            where that is not the outputs' dtype. Defaults to `None`.
        by_column: boolean. Whether columns are looked at by themselves. Defaults to `True`.

    Returns:
        A `Comparison`.

    Raises:
        ExportError: A name, a shape, a dtype, the place of a NaN, or a value differs. The message
            says which output of which batch. Or a column, along the last axis, whose values are
            too small beside the others' for that differs by its own measure.
    """
    if len(expected) != len(received):
        raise ExportError(f"{len(received)} batches came back of {len(expected)}.")
    largest = 0.0
    precisions = dict(precision) if isinstance(precision, Mapping) else {}
    if isinstance(precision, str):
        precisions = dict.fromkeys(expected[0] if expected else (), precision)
    scales: Counter[str] = Counter()
    for reference in expected:  # What int8 rounds by the range of all rows is judged by that.
        of_int8 = {
            name: array for name, array in reference.items() if precisions.get(name) == _INT8
        }
        scales |= Counter({name: _largest(array) for name, array in of_int8.items()})
    for index, (reference, outputs) in enumerate(zip(expected, received, strict=True)):
        if set(reference) != set(outputs):
            raise ExportError(f"Outputs are {sorted(outputs)}; expected {sorted(reference)}.")
        for name, array in reference.items():
            try:
                difference = _difference(array, outputs[name], precisions.get(name), scales[name])
                largest = max(largest, difference)
            except ExportError as error:
                raise ExportError(f"Output {name!r} of batch {index}: {error}") from error
    untold = []
    for name in expected[0] if expected else ():
        groups = list(_rows_by_shape(name, expected, received))
        tolerance = _tolerance(expected[0][name], precisions.get(name))
        unit = _unit(expected[0][name])
        try:
            for left, right in groups if by_column else ():
                _check_columns(left, right, tolerance, unit)
        except ExportError as error:
            raise ExportError(f"Output {name!r}: {error}") from error
        if not _tells(groups):
            untold.append(name)
    any_finite = any(
        np.isfinite(array.astype("float64")).any() for batch in expected for array in batch.values()
    )
    return Comparison(len(expected), largest, any_finite, tuple(untold))


def differing_places(
    expected: dict[str, Array], received: dict[str, Array], precisions: Mapping[str, str | None]
) -> dict[str, Array] | None:
    """Returns where the outputs of one batch differ beyond the tolerance, by output name.

    Args:
        expected: The model's outputs by name.
        received: Those to compare.
        precisions: By output name what it is computed in.

    Returns:
        A dict of boolean arrays; `None` where names, shapes or dtypes differ.
    """
    if set(expected) != set(received):
        return None
    found = {}
    for name, array in expected.items():
        other = received[name]
        if (array.shape, array.dtype) != (other.shape, other.dtype):
            return None
        if str(array.dtype) not in TOLERANCES:
            found[name] = np.asarray(array != other)
            continue
        left, right = array.astype("float64"), other.astype("float64")
        allowed = _tolerance(array, precisions.get(name)) * max(_LEAST_SCALE, _largest(array))
        with np.errstate(invalid="ignore"):
            is_near = np.abs(left - right) <= allowed
        is_same = (left == right) | (np.isnan(left) & np.isnan(right))
        found[name] = np.asarray(~(is_near | is_same))
    return found


def _rows_by_shape(
    name: str, expected: list[dict[str, Array]], received: list[dict[str, Array]]
) -> Iterator[tuple[Array, Array]]:
    """Yields an output of the model and of its artifact, all rows of a shape in one array."""
    by_shape: dict[tuple[int, ...], list[tuple[Array, Array]]] = {}
    for reference, outputs in zip(expected, received, strict=True):
        left, right = np.atleast_1d(reference[name]), np.atleast_1d(outputs[name])
        by_shape.setdefault(left.shape[1:], []).append((left, right))
    for pairs in by_shape.values():
        left, right = (np.concatenate(side).astype("float64") for side in zip(*pairs, strict=True))
        finite = np.isfinite(left)
        yield np.where(finite, left, 0.0), np.where(finite, right, 0.0)


def _check_columns(left: Array, right: Array, tolerance: float, unit: float) -> None:
    """Raises where a column is off by what the tolerance of larger columns hides."""
    if left.ndim <= 1 or not left.size:
        return
    others = tuple(range(left.ndim - 1))
    moved = np.sqrt(np.square(left - left.mean(0)).mean(others))
    error = np.sqrt(np.square(right - left).mean(others))
    share = max(_SHARE_OF_MOVEMENT, 5 * tolerance)
    allowed = np.maximum(tolerance * np.abs(left).max(others), share * moved)
    is_rounding = moved <= _ROUNDING * unit * np.abs(left).max()
    excess = np.where(is_rounding, 0.0, error - allowed)
    column = int(excess.argmax())
    if excess[column] > 0:
        raise ExportError(
            f"column {column} differs by {error[column]:.3g} (root mean square), and moves by "
            f"{moved[column]:.3g} from row to row; {allowed[column]:.3g} is allowed."
        )


def _tells(groups: list[tuple[Array, Array]]) -> bool:
    """Returns whether an output moves from row to row, and the artifact's in the same way."""
    moved = sum(float(np.square(left - left.mean(0)).sum()) for left, _ in groups if len(left))
    error = sum(
        float(np.square(right - right.mean(0) - left + left.mean(0)).sum())
        for left, right in groups
        if len(left)
    )
    return moved > 0 and error <= _TOLD_BY**2 * moved


def _difference(
    expected: Array, received: Array, precision: str | None, least_scale: float
) -> float:
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
    scale = max(_LEAST_SCALE, least_scale, _largest(left))
    allowed = _tolerance(expected, precision) * scale
    if difference > allowed:
        raise ExportError(f"differs by {difference:.3g}; {allowed:.3g} is allowed.")
    return difference


def _largest(array: Array) -> float:
    values = np.abs(array.astype("float64"))
    return float(values[np.isfinite(values)].max(initial=0.0))


def _unit(array: Array) -> float:
    """Returns what two numbers of an array's dtype about one differ by at the least."""
    is_float = str(array.dtype) in TOLERANCES and array.dtype.kind == "f"
    return float(np.finfo(array.dtype).eps) if is_float else 2.0**-7


def _tolerance(expected: Array, precision: str | None) -> float:
    names = [name for name in (str(expected.dtype), precision) if name]
    return max(TOLERANCES.get(name, 0.0) for name in names)


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
