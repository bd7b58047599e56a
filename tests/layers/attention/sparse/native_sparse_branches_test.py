import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers.attention.sparse.native_sparse_branches import (
    NativeSparseBranches,
    attend_to_compressed,
    attend_to_window,
    swap_heads,
)
from keras_deepseek.testing import assert_close
from tests.oracles.block_sparse_attention import masked_attention
from tests.oracles.precisions import PRECISIONS


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def draw(*shape, dtype="float32"):
    return keras.ops.convert_to_tensor(
        np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)
    )


def expect(query, key, value, mask):
    """From keys (B, G, P, D)."""
    query, key, value = (to_numpy(x) for x in (query, swap_heads(key), swap_heads(value)))
    padded_query = np.zeros((query.shape[0], key.shape[1], *query.shape[2:]))
    padded_query[:, : query.shape[1]] = query  # The oracle wants as many queries as keys.
    padded = np.zeros((len(query), key.shape[1], key.shape[1]), bool)
    padded[:, : query.shape[1]] = mask
    return masked_attention(padded_query, key, value, padded)[:, : query.shape[1]]


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_compressed_blocks_are_seen_once_they_have_ended(dtype):
    query, key, value = (
        draw(*shape, dtype=dtype) for shape in ((2, 7, 4, 6), (2, 2, 9, 6), (2, 2, 9, 3))
    )
    numbers = keras.ops.convert_to_tensor(
        np.arange(7, dtype="int32") + np.array([[0], [5]], "int32")
    )
    outputs, weights = attend_to_compressed(query, key, value, numbers, 4, 2)
    mask = np.arange(9) * 2 + 3 <= to_numpy(numbers)[..., None]
    assert to_numpy(outputs).dtype == dtype
    assert_close(to_numpy(outputs), expect(query, key, value, mask), dtype)
    np.testing.assert_array_equal(to_numpy(outputs)[0, :3], 0)
    weights = to_numpy(weights)
    np.testing.assert_allclose(weights.sum(-1)[1], 2, rtol=1e-5)  # Two heads to each head of keys.
    assert not weights[~np.broadcast_to(mask[:, None], weights.shape)].any()


@pytest.mark.parametrize(("length", "window"), [(1, 5), (4, 5), (9, 5), (9, 1)])
def test_a_window_of_a_cache_is_that_of_each_sequence(length, window):
    branches = NativeSparseBranches(4, 2, 4, 4, 1, 2, window)
    query, key, value = draw(2, length, 4, 6), draw(2, 2, 20, 6), draw(2, 2, 20, 3)
    first = np.array([[2], [11]], "int32")
    numbers = keras.ops.convert_to_tensor(first + np.arange(length, dtype="int32"))
    outputs = attend_to_window(query, key, value, numbers, branches.window_layout)
    distance = to_numpy(numbers)[..., None] - np.arange(20)
    assert_close(
        to_numpy(outputs), expect(query, key, value, (distance >= 0) & (distance < window))
    )


def test_where_all_blocks_are_chosen_that_branch_is_full_causal_attention():
    query = draw(2, 16, 4, 6)
    keys = {
        f"{branch}_{kind}": draw(2, 2, 7 if branch == "compressed" else 16, 6)
        for branch in ("compressed", "selection", "window")
        for kind in ("key", "value")
    }
    branches = NativeSparseBranches(4, 2, 4, 4, 1, 2, 5)
    _, chosen, _ = branches.attend_to_tokens(query, keys)
    pair = (keys["selection_key"], keys["selection_value"])
    assert_close(to_numpy(chosen), expect(query, *pair, np.tri(16, dtype=bool)))
    numbers = keras.ops.convert_to_tensor(np.tile(np.arange(16, dtype="int32"), (2, 1)))
    _, gathered, _ = branches.attend_to_cache(query, keys, numbers)
    assert_close(to_numpy(gathered), to_numpy(chosen))


def test_sizes_that_do_not_fit_one_another_are_refused():
    with pytest.raises(InvalidInputError, match="must be a multiple of `compression_stride`"):
        NativeSparseBranches(5, 2, 4, 4, 1, 2, 5)
    with pytest.raises(InvalidInputError, match="because these are always chosen"):
        NativeSparseBranches(4, 2, 4, 2, 1, 2, 5)
    assert NativeSparseBranches(4, 2, 4, 4, 1, 2, 5).count_compressed(3) == 0
    assert NativeSparseBranches(4, 2, 4, 4, 1, 2, 5).count_compressed(6) == 2
