import keras
import numpy as np
import pytest

from keras_deepseek.layers.attention.linear_attention import sum_over_all, sum_over_earlier
from keras_deepseek.testing import assert_close
from tests.oracles.precisions import PRECISIONS


def draw(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("float32")


QUERY, KEY, VALUE, STATE = (
    draw(2, 7, 3, 4),
    draw(2, 7, 3, 4) + 1,
    draw(2, 7, 3, 5),
    draw(2, 3, 4, 5),
)


def test_a_sum_is_over_all_tokens():
    expected = np.einsum("bihd,bjhd,bjhv->bihv", QUERY, KEY, VALUE)
    assert_close(keras.ops.convert_to_numpy(sum_over_all(QUERY, KEY, VALUE)), expected)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("chunk_size", [1, 3, 7, 64])
def test_a_sum_is_over_a_state_and_the_tokens_so_far(chunk_size, dtype):
    arrays = [x.astype(dtype) for x in (QUERY, KEY, VALUE, STATE)]
    query, key, value, first_state = arrays
    tensors = [keras.ops.convert_to_tensor(x) for x in arrays]
    sums, state = sum_over_earlier(*tensors, chunk_size)
    expected = np.einsum("bihd,bjhd,bjhv,ij->bihv", query, key, value, np.tri(7))
    expected += np.einsum("bihd,bhdv->bihv", query, first_state)
    assert_close(keras.ops.convert_to_numpy(sums), expected, dtype)
    added = np.einsum("bjhd,bjhv->bhdv", key, value)
    assert_close(keras.ops.convert_to_numpy(state), first_state + added, dtype)
