"""The sum of gradients that are sent as low-rank matrices, in a compiled step."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

from keras_deepseek.backend.processes.gradient_compression import LowRank

SumAll = Callable[[Sequence[Any]], list[Any]]
"""Sums each tensor of a list over all replicas."""


def sum_low_rank(
    exact: Any,
    shapes: Sequence[Sequence[int]],
    low_rank: LowRank,
    factors: Any,
    sum_first: SumAll,
    sum_second: SumAll,
) -> tuple[Any, Any, list[Any]]:
    """Sums a float32 vector over all replicas, sent as low-rank matrices (see `LowRank`).

    `exact` joins gradients of the given shapes. `factors` begins with the `Q^T` of each gradient
    that is sent as a matrix. `sum_first` sums each `M Q`, and the gradients that are sent whole;
    `sum_second` sums each `P^T M`.

    Returns the sum; the residual, which is what this replica did not send; and the factors for the
    next step.
    """
    layout = [low_rank.matrix_shape(shape) for shape in shapes]
    ends = [sum(map(math.prod, shapes[: index + 1])) for index in range(len(shapes))]
    matrices: list[Any] = []
    whole: list[Any] = []
    projected: list[Any] = []
    for shape, part in zip(layout, ops.split(exact, ends[:-1]), strict=True):
        if shape is None:
            whole.append(part)
            continue
        size = low_rank.rank * shape[1]
        factor, factors = ops.reshape(factors[:size], (low_rank.rank, -1)), factors[size:]
        matrices.append(ops.reshape(part, shape))
        projected.append(matrices[-1] @ ops.transpose(factor))
    # The sums for the matrices come first, then those of whole gradients, which the loop takes.
    first_sums = iter(sum_first([*projected, *whole]))
    bases = [_orthonormal(next(first_sums)) for _ in matrices]
    answers = [ops.transpose(base) @ matrix for matrix, base in zip(matrices, bases, strict=True)]
    second_sums = sum_second(answers)
    totals: list[Any] = []
    residuals: list[Any] = []
    compressed = zip(matrices, bases, answers, second_sums, strict=True)
    for shape in layout:
        if shape is None:
            totals.append(next(first_sums))
            residuals.append(ops.zeros_like(totals[-1]))
        else:
            matrix, base, answer, summed = next(compressed)
            totals.append(ops.reshape(base @ summed, -1))
            residuals.append(ops.reshape(matrix - base @ answer, -1))
    next_factors = [
        ops.reshape(ops.transpose(_orthonormal(ops.transpose(summed))), -1)
        for summed in second_sums
    ]
    return ops.concatenate(totals), ops.concatenate(residuals), next_factors


def _orthonormal(columns: Any) -> Any:
    """Returns an orthonormal basis of a matrix's columns; not finite if the columns are not."""
    return ops.qr(columns)[0] + 0.0 * columns
