import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_deepseek.layers.attention.sparse.block_attention import attend_to_cached_blocks
from keras_deepseek.layers.attention.sparse.block_plan import BlockLayout
from keras_deepseek.testing import assert_close
from tests.oracles.block_sparse_attention import masked_attention, shown_pairs

SLOTS = 13


def draw(length, num_groups=1):
    rng = np.random.default_rng(0)
    shapes = {"query": (2, length, 2, 4), "key": (2, SLOTS, num_groups, 4)}
    shapes["value"] = (2, SLOTS, num_groups, 3)
    return {name: rng.normal(size=shape).astype("float32") for name, shape in shapes.items()}


def decode(arrays, start, layout, mask=None, **kwargs):
    mask = np.ones((2, SLOTS), bool) if mask is None else mask
    cache = {"key": arrays["key"], "value": arrays["value"], "mask": mask}
    cache = {name: ops.convert_to_tensor(array) for name, array in cache.items()}
    query = ops.convert_to_tensor(arrays["query"])
    return ops.convert_to_numpy(attend_to_cached_blocks(query, cache, start, layout, **kwargs))


@settings(max_examples=8)
@given(
    length=st.sampled_from([1, 4, 6]),
    start=st.integers(0, SLOTS - 6),
    block_size=st.integers(1, 5),
    sliding_window=st.integers(1, 9),
    global_blocks=st.lists(st.integers(0, 3), max_size=1),
    block_stride=st.none() | st.integers(1, 3),
    num_groups=st.integers(1, 2),
)
def test_queries_see_what_the_layout_shows_them_of_the_cache(
    length, start, block_size, num_groups, global_blocks, **patterns
):
    layout = BlockLayout(block_size, True, global_blocks=tuple(global_blocks), **patterns)
    visible_pairs = shown_pairs(
        SLOTS,
        block_size=block_size,
        use_causal_mask=True,
        global_blocks=global_blocks,
        **patterns,
    )[start : start + length]
    arrays = draw(length, num_groups)
    mask = np.random.default_rng(1).random((2, SLOTS)) > 0.3
    outputs = decode(arrays, start, layout, mask)
    expected = masked_attention(*arrays.values(), visible_pairs & mask[:, None])
    assert_close(outputs, expected)


def test_the_start_may_be_a_tensor():
    layout, arrays = BlockLayout(4, True, 6), draw(3)
    start = ops.convert_to_tensor(5, "int32")
    np.testing.assert_array_equal(decode(arrays, start, layout), decode(arrays, 5, layout))


@pytest.mark.parametrize(("length", "start", "first"), [(1, 10, 4), (2, 9, 4), (4, 9, 4)])
def test_blocks_that_no_query_sees_are_not_even_read(length, start, first):
    arrays = draw(length)
    outputs = decode(arrays, start, BlockLayout(4, True, 5))
    arrays["key"][:, :first] = arrays["value"][:, :first] = np.nan
    np.testing.assert_array_equal(decode(arrays, start, BlockLayout(4, True, 5)), outputs)


def test_attention_weights_can_be_dropped():
    outputs = decode(draw(2), 3, BlockLayout(4, True, 5), dropout=ops.zeros_like)
    np.testing.assert_array_equal(outputs, 0)
