import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import HeavilyCompressedAttention, RotaryEmbedding
from keras_deepseek.testing import LayerTestCase, assert_close
from tests.oracles.cached_decoding import draw_mask
from tests.oracles.deepseek_v4_attention import deepseek_v4_attention
from tests.oracles.deepseek_v4_layers import SIZES, make_v4_layer
from tests.oracles.parity import named_weights


def make_layer(**kwargs):
    return make_v4_layer("HeavilyCompressedAttention", **kwargs)


def draw(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("float32")


def run(layer, *args, **kwargs):
    return keras.ops.convert_to_numpy(layer(*args, **kwargs))


@pytest.mark.nightly
def test_it_passes_the_layer_routine():
    arguments = {
        **SIZES["HeavilyCompressedAttention"],
        "dropout": 0.2,
        "seed": 3,
        "rotary": RotaryEmbedding(50.0, use_interleaved_pairs=True),
    }
    LayerTestCase().run_layer_test(
        HeavilyCompressedAttention, arguments, (2, 9, 6), oracle=deepseek_v4_attention
    )


@settings(max_examples=2)
@given(
    length=st.sampled_from([1, 8, 23]),
    compress_rate=st.integers(1, 5),
    side=st.sampled_from(["left", "anywhere"]),
)
def test_it_computes_the_formula_at_any_shape(length, side, **kwargs):
    layer, inputs = make_layer(**kwargs), draw(2, length, 6)
    mask = draw_mask(2, length, side)
    outputs = run(layer, inputs, mask=mask)
    assert_close(outputs[mask], deepseek_v4_attention(layer, inputs, mask)[mask])


def test_a_token_sees_full_windows_and_no_later_token():
    layer, inputs = make_layer(sliding_window=1), draw(1, 12, 6)
    changed = inputs.copy()
    changed[:, 5] += 1.0  # Of the second window, which the token 7 completes.
    outputs, changed_outputs = run(layer, inputs), run(layer, changed)
    np.testing.assert_array_equal(
        outputs[:, [0, 1, 2, 3, 4, 6]], changed_outputs[:, [0, 1, 2, 3, 4, 6]]
    )
    assert np.abs(outputs[:, [5, *range(7, 12)]] - changed_outputs[:, [5, *range(7, 12)]]).min() > 0


def test_the_cache_holds_an_entry_a_window():
    cache = make_layer().make_cache(3, 1000)
    assert {name: tuple(tensor.shape) for name, tensor in cache.items()} == {
        "compressed_key": (3, 251, 6),
        "recent_gate": (3, 4, 6),
        "recent_key": (3, 3, 6),
        "recent_value": (3, 4, 6),
        "mask": (3, 1000),
    }


def test_the_variables_have_names_that_a_layout_map_can_match():
    names = set(named_weights(make_layer(name="attention")))
    assert {name for name in names if "/" in name and "compressor" in name} == {
        "compressor/gate/kernel",
        "compressor/norm/scale",
        "compressor/position_bias",
        "compressor/value/kernel",
    }


def test_arguments_out_of_their_range_are_refused():
    with pytest.raises(InvalidInputError, match="`compress_rate` must be a positive integer"):
        make_layer(compress_rate=0)
    with pytest.raises(InvalidInputError, match="`num_output_groups` must divide"):
        make_layer(num_output_groups=3)


def test_the_cache_of_another_layer_is_refused():
    layer = make_layer()
    with pytest.raises(InvalidInputError, match=r"must hold .*'recent_key'.* \['mask'\]"):
        layer(draw(1, 3, 6), cache={"mask": np.zeros((1, 4), bool)}, cache_index=0)
    cache = make_layer(compress_rate=2).make_cache(1, 5)
    with pytest.raises(InvalidInputError, match=r"'compressed_key' must have .* \(1, 2, 6\)"):
        layer(draw(1, 3, 6), cache=cache, cache_index=0)
