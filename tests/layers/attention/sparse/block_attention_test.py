import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_deepseek.backend import current
from keras_deepseek.layers.attention.sparse.block_attention import attend_to_blocks
from keras_deepseek.layers.attention.sparse.block_plan import BlockLayout, plan_blocks
from keras_deepseek.testing import assert_close
from tests.oracles.block_sparse_attention import masked_attention
from tests.oracles.precisions import PRECISIONS


def draw(length, *, batch=2, num_heads=2, num_groups=2, dim=4, value_dim=3, dtype="float32"):
    rng = np.random.default_rng(0)
    shapes = [(num_heads, dim), (num_groups, dim), (num_groups, value_dim)]
    return [rng.normal(size=(batch, length, *shape)).astype(dtype) for shape in shapes]


def shown_by(layout, length):
    """Returns the pairs of positions, from the pairs of blocks."""
    num_blocks = max(1, -(-length // layout.block_size))
    ones = np.ones((layout.block_size, layout.block_size), bool)
    whole, window = (
        np.kron(pairs, ones)[:length, :length]
        for pairs in (layout.whole(num_blocks), layout.window(num_blocks))
    )
    distance = np.arange(length)[:, None] - np.arange(length)
    near = np.abs(distance) < (layout.sliding_window or 0)
    return (whole | (window & near)) & (distance >= 0 if layout.is_causal else True)


def attend(layout, arrays, **kwargs):
    plan = plan_blocks(layout, arrays[0].shape[1])
    tensors = [ops.convert_to_tensor(array) for array in arrays]
    return ops.convert_to_numpy(attend_to_blocks(*tensors, plan, **kwargs))


@st.composite
def layouts(draw):
    visible_blocks = draw(st.none() | st.integers(0, 2**32 - 1))
    if visible_blocks is not None:
        visible_blocks = np.random.default_rng(visible_blocks).random((12, 12)) > 0.6
    return BlockLayout(
        block_size=draw(st.integers(1, 5)),
        is_causal=draw(st.booleans()),
        sliding_window=draw(
            st.integers(1, 9) if visible_blocks is None else st.none() | st.integers(1, 9)
        ),
        global_blocks=tuple(draw(st.lists(st.integers(-3, 3), max_size=2))),
        block_stride=draw(st.none() | st.integers(1, 4)),
        num_random_blocks=draw(st.integers(0, 2)),
        layout_seed=draw(st.integers(0, 5)),
        visible_blocks=visible_blocks,
    )


@settings(max_examples=12)
@given(
    layout=layouts(),
    length=st.integers(1, 12),
    num_groups=st.integers(1, 2),
    ratio=st.integers(1, 3),
    hides=st.booleans(),
)
def test_it_equals_attention_under_a_mask_over_all_pairs(layout, length, num_groups, ratio, hides):
    arrays = draw(length, num_heads=num_groups * ratio, num_groups=num_groups)
    mask, key_mask = shown_by(layout, length), None
    if hides:
        key_mask = np.random.default_rng(1).random((2, length)) > 0.4
        mask = mask & key_mask[:, None]
    outputs = attend(layout, arrays, key_mask=key_mask)
    assert_close(outputs, masked_attention(*arrays, mask))


@pytest.mark.skipif(PRECISIONS == ["float32"], reason="JAX has no float64 unless it is asked to")
def test_it_computes_in_float64_what_is_given_so():
    layout, arrays = BlockLayout(4, True, 6, (0,)), draw(22, num_heads=4, dtype="float64")
    outputs = attend(layout, arrays)
    assert outputs.dtype == "float64"
    assert_close(outputs, masked_attention(*arrays, shown_by(layout, 22)), "float64")


@pytest.mark.parametrize("is_causal", [False, True])
def test_gradients_are_those_of_masked_dense_attention(is_causal):
    layout = BlockLayout(4, is_causal, 6, (0,), num_random_blocks=1)
    arrays = draw(22, num_heads=4)
    plan, mask = plan_blocks(layout, 22), shown_by(layout, 22)

    def sparse(query, key, value):
        return ops.sum(ops.square(attend_to_blocks(query, key, value, plan)))

    def dense(query, key, value):
        key, value = ops.repeat(key, 2, axis=2), ops.repeat(value, 2, axis=2)
        scores = ops.einsum("bqhd,bkhd->bhqk", query, key) / 2
        weights = ops.softmax(ops.where(mask, scores, -1e9))
        return ops.sum(ops.square(ops.einsum("bhqk,bkhd->bqhd", weights, value)))

    received, _ = current().compute.compute_gradients(sparse, arrays, [])
    expected, _ = current().compute.compute_gradients(dense, arrays, [])
    for gradient, expected_gradient in zip(received, expected, strict=True):
        assert_close(gradient, expected_gradient)


def test_a_query_that_sees_nothing_gives_zeros_and_a_gradient_of_zero():
    layout = BlockLayout(4, visible_blocks=np.array([[True, False], [False, False]]))
    arrays = draw(8)
    outputs = attend(layout, arrays)
    assert (outputs[:, 4:] == 0).all()
    assert (outputs[:, :4] != 0).all()
    plan = plan_blocks(layout, 8)
    by_input, _ = current().compute.compute_gradients(
        lambda *tensors: ops.sum(attend_to_blocks(*tensors, plan)), arrays, []
    )
    for gradient in by_input:
        assert np.isfinite(gradient).all()
        assert (gradient[:, 4:] == 0).all()


def test_where_all_keys_are_hidden_nothing_of_them_shows():
    arrays = draw(6)
    outputs = attend(BlockLayout(4, sliding_window=9), arrays, key_mask=np.zeros((2, 6), bool))
    np.testing.assert_array_equal(outputs, np.zeros_like(outputs))


def test_half_precision_takes_its_softmax_in_float32():
    arrays = [ops.cast(array, "float16") for array in draw(64)]
    arrays[0] = arrays[0] * 30
    plan = plan_blocks(BlockLayout(16, sliding_window=20), 64)
    outputs = attend_to_blocks(*arrays, plan)
    assert keras.backend.standardize_dtype(outputs.dtype) == "float16"
    exact = masked_attention(
        *map(ops.convert_to_numpy, arrays), shown_by(BlockLayout(16, sliding_window=20), 64)
    )
    assert_close(ops.convert_to_numpy(outputs), exact, 2e-2)


def test_dropout_is_given_the_weights():
    layout = BlockLayout(4, sliding_window=3)
    outputs = attend(layout, draw(8), dropout=lambda weights: weights * 0)
    assert (outputs == 0).all()
