import numpy as np
import pytest

from keras_deepseek.backend.processes.gradient_compression import LowRank, begin_residual
from keras_deepseek.errors import InvalidInputError


@pytest.mark.parametrize(
    ("rank", "shape", "matrix"),
    [
        (4, (30_522, 256), (30_522, 256)),
        (4, (4, 64, 256), (256, 256)),
        (4, (3, 3, 64, 128), (576, 128)),
        (4, (256, 4), None),
        (4, (16, 16), (16, 16)),
        (4, (15, 16), None),
        (1, (1_000,), None),
        (1, (), None),
        (1, (0, 5), None),
    ],
)
def test_a_gradient_is_a_matrix_that_is_about_square_or_sent_as_it_is(rank, shape, matrix):
    assert LowRank(rank).matrix_shape(shape) == matrix


def test_the_first_factors_are_orthonormal_the_same_everywhere_and_the_last_stands_first():
    shapes = [(40, 64), (7,), (8, 5, 50)]
    factors = LowRank(2).begin_factors(shapes)
    assert [factor.shape for factor in factors] == [(2, 50), (2, 64)]
    for factor in factors:
        np.testing.assert_allclose(factor @ factor.T, np.eye(2), atol=1e-6)
    residual = begin_residual(LowRank(2), shapes)
    num_weights = 2_560 + 7 + 2_000
    np.testing.assert_array_equal(residual[:num_weights], 0.0)
    np.testing.assert_array_equal(
        residual[num_weights:], np.concatenate([factor.ravel() for factor in factors])
    )


def test_what_is_rounded_has_nothing_but_zeros_to_begin_with():
    residual = begin_residual("bfloat16", [(2, 3), ()])
    np.testing.assert_array_equal(residual, np.zeros(7, "float32"))
    assert residual.dtype == "float32"


def test_a_rank_is_a_positive_integer():
    with pytest.raises(InvalidInputError, match="received 0"):
        LowRank(0)
