import keras
import numpy as np
import pytest

from keras_deepseek import backend


def top_k(values, k):
    tensors = backend.current().top_k(keras.ops.convert_to_tensor(values), k)
    return [keras.ops.convert_to_numpy(tensor) for tensor in tensors]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_largest_come_first_and_of_equals_the_first(dtype):
    if keras.backend.backend() == "jax" and dtype == "float64":
        pytest.skip("JAX has no float64 unless it is asked for.")
    rng = np.random.default_rng(0)
    values = rng.integers(-3, 4, (5, 2, 300)).astype(dtype)
    values[values == 0] *= rng.choice([-1.0, 1.0], (values == 0).sum())  # Zeros of either sign.
    values[0, 0, :5] = [np.finfo(dtype).max, -np.finfo(dtype).max, 1e-38, -1e30, 1e30]
    for k in (1, 7, 300):
        largest, indices = top_k(values, k)
        expected = np.argsort(-values, axis=-1, kind="stable")[..., :k]
        assert indices.dtype == "int32"
        np.testing.assert_array_equal(np.sort(indices), np.sort(expected))
        np.testing.assert_array_equal(largest, np.take_along_axis(values, expected, -1))
        np.testing.assert_array_equal(largest, np.take_along_axis(values, indices, -1))


def test_further_numbers_that_are_smaller_change_nothing():
    values = np.repeat(np.float32([0, 1]), [200, 10])[None]
    longer = np.concatenate([values, np.full((1, 777), -1, "float32")], axis=-1)
    chosen = [np.sort(top_k(array, 64)[1]) for array in (values, longer)]
    np.testing.assert_array_equal(*chosen)


def test_the_gradient_goes_to_the_largest():
    def total(values):
        return keras.ops.sum(backend.current().top_k(values, 2)[0])

    values = np.float32([[1, 3, 3, 2, 3]])
    (gradient,), _ = backend.current().compute_gradients(total, [values], [])
    np.testing.assert_array_equal(gradient, [[0, 1, 1, 0, 0]])


def test_only_what_is_measured_to_be_faster_is_fused():
    single, half = (keras.ops.ones((1, 2, 2, 4), dtype) for dtype in ("float32", "bfloat16"))
    assert not backend.current().fuses_attention(single)  # On a CPU, where the tests run.
    assert backend.current().fuses_attention(half) == (keras.backend.backend() == "torch")
    assert backend.current().query_block_size(single) in (128, 256)
