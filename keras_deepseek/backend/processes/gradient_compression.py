"""Compression of the gradients that processes send each other.

Each process keeps what compression removes from a gradient, and adds it to the next one (error
feedback; Seide et al., 2014), so that all of it arrives in the end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.checks import check_integer

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class LowRank:
    """Low-rank gradient compression: two thin matrices are sent for each gradient (PowerSGD).

    Choose it for links that are slow for the model: it sends one to four hundredths of the bytes. A
    gradient becomes a matrix `M` that is about square. The processes sum `M Q`, and make its
    columns orthonormal as `P`. Then they sum `P^T M`, which is the next step's `Q`. What `P` does
    not span is added to the gradient of the next step. Vectors and small matrices, of which this
    would save less than half, are sent as they are.

    Unlike with `"bfloat16"`, the descent differs from that of whole gradients: compare losses. Each
    process multiplies the matrices out itself, so their processors must round alike.

    Args:
        rank: integer. The columns of the thin matrices. Defaults to `8`.

    Raises:
        InvalidInputError: `rank` is below 1.

    Example:

    >>> from keras_deepseek.training import LowRank, Trainer
    >>> low_rank = LowRank(rank=16)  # Trainer(..., gradient_compression=low_rank)
    >>> low_rank.matrix_shape((12, 64, 768))  # The kernel of an attention's output.
    (768, 768)

    Reference:
        Vogels, Karimireddy, Jaggi (2019), https://arxiv.org/abs/1905.13727
    """

    rank: int = 8

    def __post_init__(self) -> None:
        check_integer("rank", self.rank, minimum=1)

    def matrix_shape(self, shape: Sequence[int]) -> tuple[int, int] | None:
        """Returns the shape of a gradient as a matrix, or `None` if it is sent as it is.

        Args:
            shape: integers. The shape of the gradient.
        """
        size = math.prod(shape)
        ways = [(math.prod(shape[:axis]), math.prod(shape[axis:])) for axis in range(len(shape))]
        if not ways or not size:
            return None
        rows, columns = min(ways, key=sum)
        return (rows, columns) if 2 * self.rank * (rows + columns) <= size else None

    def begin_factors(self, shapes: Sequence[Sequence[int]]) -> list[Array]:
        """Returns the first `Q^T` factors of all gradients, orthonormal, the last gradient first.

        They are the same on each process. Storing them by rows makes products with them several
        times as fast.

        Args:
            shapes: The shapes of the gradients.
        """
        random = np.random.default_rng(0)
        matrices = [self.matrix_shape(shape) for shape in reversed(shapes)]
        return [
            np.linalg.qr(random.standard_normal((matrix[1], self.rank)))[0].T.astype("float32")
            for matrix in matrices
            if matrix is not None
        ]


Kind = str | LowRank
"""`"bfloat16"` or `"float16"`, the dtype that is sent, or a `LowRank`."""


@dataclass(frozen=True)
class Compression:
    """The state of gradient compression in one step.

    Args:
        residual: float32. It begins as `begin_residual`, and then holds what compression removed
            in earlier steps.
        scale: The factor of the loss in this step. Gradients are divided by it before they are
            compressed, so that residuals have the same units in each step.
    """

    kind: Kind
    residual: "keras.Variable"
    scale: Any


def begin_residual(kind: Kind, shapes: Sequence[Sequence[int]]) -> Array:
    """Returns the initial residual of gradient compression: a float32 vector of zeros.

    It holds a zero for each number of the gradients, the last gradient first, as in a backward
    pass; then the factors of `LowRank`.
    """
    factors = kind.begin_factors(shapes) if isinstance(kind, LowRank) else []
    num_weights = sum(math.prod(shape) for shape in shapes)
    return np.concatenate(
        [np.zeros(num_weights, "float32"), *(factor.ravel() for factor in factors)]
    )
