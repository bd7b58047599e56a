import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.layers.attention.sparse import block_choice
from keras_deepseek.layers.attention.sparse.block_choice import (
    attend_to_chosen,
    choose_blocks,
    share_blocks,
)
from keras_deepseek.testing import assert_close
from tests.oracles.block_sparse_attention import masked_attention
from tests.oracles.native_sparse_attention import choose, find_importance
from tests.oracles.precisions import PRECISIONS

LENGTH, BLOCK_SIZE = 37, 4


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def draw(*shape, dtype="float32"):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)


@pytest.mark.parametrize(("size", "stride", "chosen_size"), [(4, 2, 4), (6, 2, 4), (3, 3, 6)])
def test_shares_are_the_sum_of_the_paper(size, stride, chosen_size):
    weights = np.random.default_rng(0).random(9)
    shares = share_blocks(9, size, stride, 5, chosen_size)
    expected = find_importance(weights, size, stride, 5, chosen_size)
    np.testing.assert_allclose(weights @ shares, expected)


def test_the_first_the_last_and_the_most_important_blocks_are_chosen():
    importance = np.random.default_rng(0).random((1, 1, LENGTH, 10)).astype("float32")
    numbers = np.arange(LENGTH, dtype="int32")[None]
    chosen = to_numpy(choose_blocks(importance, numbers, BLOCK_SIZE, 5, 1, 2))
    for now in range(LENGTH):
        expected = choose(importance[0, 0, now], now, BLOCK_SIZE, 5, 1, 2)
        visible = {int(block) for block in chosen[0, 0, now] if block * BLOCK_SIZE <= now}
        assert visible == expected


def make(num_chosen, batch=2, dtype="float32"):
    """Returns what is attended to, from (B, L, H, D), and which blocks by chance."""
    query, key, value = (
        draw(batch, LENGTH, 4, 6, dtype=dtype),
        draw(batch, LENGTH, 2, 6, dtype=dtype),
        draw(batch, LENGTH, 2, 3, dtype=dtype),
    )
    rng = np.random.default_rng(1)
    chosen = np.zeros((batch, 2, LENGTH, num_chosen), "int32")
    for query_index in np.ndindex(chosen.shape[:3]):
        own_block = query_index[2] // BLOCK_SIZE
        other_blocks = rng.permutation([block for block in range(10) if block != own_block])
        chosen[query_index] = [own_block, *other_blocks[: num_chosen - 1]]
    return query, key, value, chosen


def attend(query, key, value, chosen):
    rows = query.reshape(*query.shape[:2], 2, 2, -1).transpose(0, 2, 1, 3, 4) * 6**-0.5
    tables = []
    for x in (key, value):
        filled = np.pad(x, ((0, 0), (0, 40 - LENGTH), (0, 0), (0, 0))).transpose(0, 2, 1, 3)
        tables.append(filled.reshape(*filled.shape[:2], 10, BLOCK_SIZE, -1))
    numbers = np.arange(LENGTH, dtype="int32")[None]
    tensors = [keras.ops.convert_to_tensor(x) for x in (rows, *tables, chosen, numbers)]
    return to_numpy(attend_to_chosen(*tensors)).transpose(0, 2, 1, 3, 4)


def mask_of(chosen, group):
    tokens = np.arange(LENGTH)
    is_chosen = (chosen[:, group, :, None] == (tokens // BLOCK_SIZE)[:, None]).any(-1)
    return is_chosen & (tokens <= tokens[:, None])


@pytest.mark.parametrize("tile", [1, 2, 16, None])
@pytest.mark.parametrize("num_chosen", [1, 4])
def test_gathered_is_masked_dense(num_chosen, tile, monkeypatch):
    if tile is not None:
        monkeypatch.setattr(block_choice, "_choose_tile", lambda *_: tile)
    query, key, value, chosen = make(num_chosen)
    outputs = attend(query, key, value, chosen)
    for group in range(2):
        heads = slice(2 * group, 2 * group + 2)
        mask = mask_of(chosen, group)
        pair = (x[:, :, group : group + 1] for x in (key, value))
        expected = masked_attention(query[:, :, heads], *pair, mask)
        assert_close(outputs[:, :, group], expected)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_with_all_blocks_it_is_full_causal_attention(dtype):
    query, key, value, chosen = make(10, dtype=dtype)
    expected = masked_attention(query, key, value, np.tri(LENGTH, dtype=bool))
    outputs = attend(query, key, value, chosen)
    assert outputs.dtype == dtype
    assert_close(outputs.reshape(expected.shape), expected, dtype)


def test_the_gradient_passes_the_choice_by():
    importance = np.random.default_rng(0).random((1, 1, 4, 3)).astype("float32")

    def total(importance):
        blocks = choose_blocks(importance, np.arange(4, dtype="int32")[None], 2, 2, 1, 1)
        return keras.ops.sum(keras.ops.cast(blocks, "float32")) + 0 * keras.ops.sum(importance)

    (gradient,), _ = backend.current().compute.compute_gradients(total, [importance], [])
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    ("num_choices", "num_blocks", "expected"), [(16, 128, 1), (512, 16, 8), (131072, 128, 128)]
)
def test_a_tile_is_filled_by_few_of_the_queries_of_a_block(num_choices, num_blocks, expected):
    assert block_choice._choose_tile(num_choices, num_blocks) == expected
