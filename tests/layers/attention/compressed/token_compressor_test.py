import itertools

import keras
import numpy as np
import pytest

from keras_deepseek.layers.attention.compressed.token_compressor import TokenCompressor
from keras_deepseek.layers.attention.compressed.token_packing import pack_tokens
from keras_deepseek.testing import assert_close


def make_compressor(**kwargs):
    arguments = {"use_overlap": False, "epsilon": 1e-6, "kernel_initializer": "glorot_uniform"}
    compressor = TokenCompressor(4, 3, **{**arguments, **kwargs})
    compressor.build((None, None, 5))
    bias = compressor.position_bias
    bias.assign(np.random.default_rng(0).normal(size=bias.shape))
    return compressor


def draw(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("float32")


def mark_positions(entries, positions):
    """Stands for a rotation, and shows by which positions it is."""
    return entries + keras.ops.cast(positions, entries.dtype)[..., None]


def compress(compressor, inputs, **kwargs):
    entries, _ = compressor.compress(pack_tokens(inputs, **kwargs), None, mark_positions)
    return keras.ops.convert_to_numpy(entries)


@pytest.mark.parametrize("use_overlap", [False, True])
def test_an_entry_is_the_gated_sum_of_its_window(use_overlap):
    compressor, inputs = make_compressor(use_overlap=use_overlap), draw(1, 8, 5)
    value, gate, bias = (
        keras.ops.convert_to_numpy(weight)
        for weight in (compressor.value.kernel, compressor.gate.kernel, compressor.position_bias)
    )
    values, gates = inputs[0] @ value, inputs[0] @ gate + np.tile(bias, (3, 1))[:8]
    entries = compress(compressor, inputs)
    for number in range(2):
        start = 3 * number
        window, gated = values[start : start + 3, -4:], gates[start : start + 3, -4:]
        if use_overlap and number:
            window = np.concatenate([values[:3, :4], window])
            gated = np.concatenate([gates[:3, :4], gated])
        weights = np.exp(gated) / np.exp(gated).sum(axis=0)
        pooled = (weights * window).sum(axis=0)
        assert_close(entries[0, number], pooled / np.sqrt((pooled**2).mean()) + start)


@pytest.mark.parametrize("use_overlap", [False, True])
@pytest.mark.parametrize("pieces", [(0, 2, 3, 9, 10), (0, 7, 10)])
def test_entries_of_pieces_are_those_of_the_whole(use_overlap, pieces):
    compressor, inputs = make_compressor(use_overlap=use_overlap, prefix="far_"), draw(2, 10, 5)
    shapes = compressor.cache_shapes(11)
    assert sorted(shapes) == ["far_compressed_key", "far_recent_gate", "far_recent_value"]
    cache = {name: keras.ops.zeros((2, *shape)) for name, shape in shapes.items()}
    for start, stop in itertools.pairwise(pieces):
        num_before = keras.ops.full((2, 1), start, "int32")
        tokens = pack_tokens(inputs[:, start:stop], num_before=num_before)
        entries, cache = compressor.compress(tokens, cache, mark_positions)
    expected = compress(compressor, inputs)
    assert_close(keras.ops.convert_to_numpy(entries)[:, :3], expected[:, :3])


def test_padding_is_in_no_window():
    compressor, inputs = make_compressor(), draw(1, 7, 5)
    mask = np.array([[False, True, True, False, True, True, False]])
    entries = compress(compressor, inputs, mask=mask)
    assert_close(entries[:, :1], compress(compressor, inputs[:, mask[0]])[:, :1])


def test_an_entry_is_seen_from_its_last_token_on():
    counts = make_compressor().count_visible(pack_tokens(draw(1, 7, 5)))
    assert keras.ops.convert_to_numpy(counts).tolist() == [[0, 0, 1, 1, 1, 2, 2]]
