import keras
import numpy as np
import pytest

from keras_deepseek.layers.attention.linear_scan import sum_over_all, sum_over_earlier
from keras_deepseek.testing import assert_close


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


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 64])
def test_a_sum_is_over_a_state_and_the_tokens_so_far(chunk_size):
    tensors = [keras.ops.convert_to_tensor(x) for x in (QUERY, KEY, VALUE, STATE)]
    sums, state = sum_over_earlier(*tensors, chunk_size)
    expected = np.einsum("bihd,bjhd,bjhv,ij->bihv", QUERY, KEY, VALUE, np.tri(7))
    expected += np.einsum("bihd,bhdv->bihv", QUERY, STATE)
    assert_close(keras.ops.convert_to_numpy(sums), expected)
    added = np.einsum("bjhd,bjhv->bhdv", KEY, VALUE)
    assert_close(keras.ops.convert_to_numpy(state), STATE + added)
