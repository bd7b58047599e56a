import keras
import numpy as np

from keras_deepseek.backend.processes.gradient_compression import LowRank
from keras_deepseek.backend.processes.low_rank_sums import sum_low_rank


def test_what_is_not_sent_is_returned_and_small_gradients_are_sent_whole():
    shapes, low_rank = [(40, 64), (7,)], LowRank(2)
    exact = np.random.default_rng(0).normal(size=40 * 64 + 7).astype("float32")
    factors = low_rank.begin_factors(shapes)[0]

    def sum_twice(tensors):  # Two replicas with the same gradients.
        return [2.0 * tensor for tensor in tensors]

    tensors = map(keras.ops.convert_to_tensor, (exact, factors.reshape(-1)))
    total, residual, (next_factor,) = sum_low_rank(
        next(tensors), shapes, low_rank, next(tensors), sum_twice, sum_twice
    )
    total, residual, next_factor = map(keras.ops.convert_to_numpy, (total, residual, next_factor))
    np.testing.assert_allclose(total / 2 + residual, exact, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(residual[-7:], 0.0)
    assert np.linalg.matrix_rank(total[:-7].reshape(40, 64), tol=1e-3) == 2
    rows = next_factor.reshape(2, 64)
    np.testing.assert_allclose(rows @ rows.T, np.eye(2), atol=1e-5)
