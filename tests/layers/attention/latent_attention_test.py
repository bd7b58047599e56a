import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_deepseek import backend
from keras_deepseek.layers.attention.latent_attention import (
    LatentKeys,
    LatentQueries,
    attend_absorbed,
    attend_chosen,
    attend_fused,
    attend_naive,
    is_absorbed_cheaper,
)
from keras_deepseek.testing import assert_close
from tests.oracles.precisions import PRECISIONS


def draw(*shape, dtype="float32"):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)


def attend_both_ways(queries, keys, mask, kernels, drop=lambda weights: weights):
    key_kernel, value_kernel = kernels

    def key_up(latent):
        return keras.ops.einsum("bsc,chn->bshn", latent, key_kernel)

    def value_up(latent):
        return keras.ops.einsum("bsc,chv->bshv", latent, value_kernel)

    naive = attend_naive(queries, keys, mask, (key_up, value_up), drop)
    absorbed = attend_absorbed(queries, keys, mask, kernels, drop)
    return [keras.ops.convert_to_numpy(outputs) for outputs in (naive, absorbed)]


def draw_case(batch, queries, keys, heads, nope, rope, value, rank, dtype="float32"):
    tensors = [
        LatentQueries(draw(batch, queries, heads, nope), draw(batch, queries, heads, rope)),
        LatentKeys(draw(batch, keys, rank), draw(batch, keys, rope)),
        (draw(rank, heads, nope), draw(rank, heads, value)),
    ]
    return keras.tree.map_structure(
        lambda array: keras.ops.convert_to_tensor(array.astype(dtype)), tensors
    )


@settings(max_examples=5)
@given(
    sizes=st.tuples(*[st.integers(1, 5)] * 8),
    masked=st.booleans(),
    dtype=st.sampled_from(PRECISIONS),
)
def test_the_two_ways_give_the_same_at_any_shape(sizes, masked, dtype):
    queries, keys, kernels = draw_case(*sizes, dtype=dtype)
    mask = None
    if masked:
        mask = np.random.default_rng(0).integers(0, 2, (sizes[0], sizes[1], sizes[2])) > 0
        mask[..., 0] = True
    naive, absorbed = attend_both_ways(queries, keys, mask, kernels)
    assert naive.dtype == absorbed.dtype == dtype
    assert_close(absorbed, naive, dtype)


def test_equal_scores_give_the_mean_of_what_is_seen():
    _, keys, kernels = draw_case(1, 1, 4, 1, 2, 2, 3, 5)
    queries = LatentQueries(keras.ops.zeros((1, 1, 1, 2)), keras.ops.zeros((1, 1, 1, 2)))
    mask = np.array([[[True, False, True, False]]])
    values = np.einsum("bsc,chv->bshv", draw(1, 4, 5), draw(5, 1, 3))
    for outputs in attend_both_ways(queries, keys, mask, kernels):
        assert_close(outputs[:, 0], values[:, [0, 2]].mean(axis=1))


def test_a_query_that_sees_no_key_stays_finite():
    case = draw_case(2, 1, 3, 2, 2, 2, 3, 5)
    for outputs in attend_both_ways(*case[:2], np.zeros((2, 1, 3), bool), case[2]):
        assert np.isfinite(outputs).all()


def test_what_is_dropped_are_the_attention_weights():
    case = draw_case(2, 2, 3, 2, 2, 2, 3, 5)
    dropped = []

    def drop(weights):
        dropped.append(keras.ops.convert_to_numpy(weights))
        return keras.ops.zeros_like(weights)

    for outputs in attend_both_ways(*case[:2], None, case[2], drop):
        assert not outputs.any()
    for weights in dropped:
        assert weights.shape == (2, 2, 2, 3)
        assert_close(weights.sum(axis=-1), np.ones((2, 2, 2)))


def test_chosen_keys_are_attended_to_as_by_a_mask_of_them():
    queries, keys, kernels = draw_case(2, 3, 5, 2, 2, 2, 3, 4)
    indices = np.array([[[4, 1], [0, 3], [2, 2]], [[1, 0], [0, 4], [3, 2]]], "int32")
    is_chosen = np.array([[[True, True], [True, True], [True, False]]] * 2)
    mask = np.zeros((2, 3, 5), bool)
    np.put_along_axis(mask, indices[..., :1], True, axis=-1)
    np.put_along_axis(mask[:, :2], indices[:, :2, 1:], True, axis=-1)
    outputs, weights = attend_chosen(
        queries,
        keys,
        keras.ops.convert_to_tensor(indices),
        keras.ops.convert_to_tensor(is_chosen),
        kernels,
        lambda weights: weights,
    )
    _, expected = attend_both_ways(queries, keys, mask, kernels)
    assert_close(keras.ops.convert_to_numpy(outputs), expected)
    weights = keras.ops.convert_to_numpy(weights)
    assert_close(weights.sum(axis=-1), np.ones((2, 3, 2)))
    assert not weights[:, 2, :, 1].any()


@pytest.mark.parametrize(
    ("query_length", "key_length", "cheaper"),
    [
        (1, 4096, True),  # one step of decoding
        (4096, 4096, False),  # a prompt
        (4, 4096, True),  # a few guessed tokens
        (1024, 4096, False),  # a part of a long prompt
        (1, 1, False),
        (None, None, False),
        (None, 4096, False),
    ],
)
def test_a_step_of_decoding_is_absorbed_and_a_prompt_is_not(query_length, key_length, cheaper):
    deepseek_v3 = {"expanded_dim": 128 + 128, "rank": 512}
    assert is_absorbed_cheaper(query_length, key_length, **deepseek_v3) is cheaper


def test_a_small_rank_is_absorbed_at_every_length():
    for length in (1, 7, 4096, None):
        assert is_absorbed_cheaper(length, length, expanded_dim=16, rank=6)


@pytest.mark.parametrize("is_masked", [False, True])
def test_the_fused_way_gives_the_same(is_masked):
    queries, keys, kernels = draw_case(2, 7, 7, 3, 6, 4, 5, 8)
    mask = np.tril(np.ones((1, 7, 7), bool))
    if is_masked:
        mask = np.logical_and(mask, np.arange(7) > [[[2]], [[0]]])
    ups = [
        lambda latent, kernel=kernel: keras.ops.einsum("bsc,chn->bshn", latent, kernel)
        for kernel in kernels
    ]
    attention_mask = keras.ops.convert_to_tensor(mask)
    naive = attend_naive(queries, keys, attention_mask, ups, lambda weights: weights)
    fused = attend_fused(queries, keys, attention_mask if is_masked else None, ups)
    sees_a_key = np.broadcast_to(mask.any(axis=2), (2, 7))
    naive, fused = (keras.ops.convert_to_numpy(heads)[sees_a_key] for heads in (naive, fused))
    assert_close(fused, naive, "float32")


@pytest.mark.parametrize("is_padded", [False, True])
def test_a_long_causal_sequence_is_computed_block_by_block(is_padded, monkeypatch):
    monkeypatch.setattr(backend.current().compute, "query_block_size", lambda _: 3)
    queries, keys, kernels = draw_case(2, 8, 8, 2, 6, 4, 5, 8)
    mask = np.tril(np.ones((1, 8, 8), bool))
    if is_padded:
        mask = np.logical_and(mask, np.arange(8) >= [[[0]], [[0]]])
    mask = keras.ops.convert_to_tensor(mask)
    ups = [
        lambda latent, kernel=kernel: keras.ops.einsum("bsc,chn->bshn", latent, kernel)
        for kernel in kernels
    ]
    whole = attend_naive(queries, keys, mask, ups, lambda weights: weights)
    blocks = attend_naive(queries, keys, mask, ups, lambda weights: weights, is_causal=True)
    assert_close(keras.ops.convert_to_numpy(blocks), keras.ops.convert_to_numpy(whole), "float32")
