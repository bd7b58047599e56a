import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import CompressedSparseAttention, RotaryEmbedding
from keras_deepseek.testing import LayerTestCase, assert_close
from tests.oracles.cached_decoding import draw_mask
from tests.oracles.deepseek_v4_attention import deepseek_v4_attention
from tests.oracles.deepseek_v4_layers import SIZES, make_v4_layer
from tests.oracles.parity import named_weights


def make_layer(**kwargs):
    return make_v4_layer("CompressedSparseAttention", **kwargs)


def draw(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("float32")


def run(layer, *args, **kwargs):
    return keras.ops.convert_to_numpy(layer(*args, **kwargs))


@pytest.mark.nightly
def test_it_passes_the_layer_routine():
    arguments = {
        **SIZES["CompressedSparseAttention"],
        "dropout": 0.2,
        "seed": 3,
        "rotary": RotaryEmbedding(50.0, use_interleaved_pairs=True),
    }
    LayerTestCase().run_layer_test(
        CompressedSparseAttention, arguments, (2, 9, 6), oracle=deepseek_v4_attention
    )


@settings(max_examples=2)
@given(
    length=st.sampled_from([1, 8, 23]),
    compress_rate=st.integers(1, 5),
    index_top_k=st.sampled_from([1, 3, 30]),
    side=st.sampled_from(["left", "anywhere"]),
)
def test_it_computes_the_formula_at_any_shape(length, side, **kwargs):
    layer, inputs = make_layer(**kwargs), draw(2, length, 6)
    mask = draw_mask(2, length, side)
    outputs = run(layer, inputs, mask=mask)
    assert_close(outputs[mask], deepseek_v4_attention(layer, inputs, mask)[mask])


def test_a_token_sees_no_entry_before_its_last_token():
    layer, inputs = make_layer(sliding_window=1, compress_rate=4), draw(1, 16, 6)
    changed = inputs.copy()
    changed[:, 5] += 1.0  # Of the second window, which the token 7 completes.
    outputs, changed_outputs = run(layer, inputs), run(layer, changed)
    np.testing.assert_array_equal(
        outputs[:, [0, 1, 2, 3, 4, 6]], changed_outputs[:, [0, 1, 2, 3, 4, 6]]
    )
    assert np.abs(outputs[:, [5, 7, 8, 9]] - changed_outputs[:, [5, 7, 8, 9]]).min() > 0


def test_choosing_all_entries_is_seeing_all():
    inputs, layers = draw(2, 13, 6), [make_layer(index_top_k=top_k) for top_k in (5, 6)]
    layers[1].set_weights(layers[0].get_weights())
    for layer in layers:  # One token less has no more entries than the first layer chooses.
        assert_close(run(layer, inputs[:, :11]), run(layers[0], inputs[:, :11]))
    assert np.abs(run(layers[0], inputs) - run(layers[1], inputs)).max() > 1e-4


def test_the_indexer_is_not_trained_unless_asked_to():
    layer = make_layer()
    names = set(named_weights(layer))
    trained = {weight.path.partition("/")[2] for weight in layer.trainable_weights}
    assert names - trained == {
        "indexer/compressor/gate/kernel",
        "indexer/compressor/norm/scale",
        "indexer/compressor/position_bias",
        "indexer/compressor/value/kernel",
        "indexer/head_weight/kernel",
        "indexer/query_up/kernel",
    }
    layer.indexer.trainable = True
    assert len(layer.trainable_weights) == len(names)


def test_the_cache_holds_keys_of_the_indexer_where_there_is_a_choice():
    shapes = {name: tuple(tensor.shape) for name, tensor in make_layer().make_cache(3, 9).items()}
    assert shapes == {
        "compressed_key": (3, 5, 6),
        "index_compressed_key": (3, 5, 4),
        "index_recent_gate": (3, 4, 8),
        "index_recent_value": (3, 4, 8),
        "recent_gate": (3, 4, 12),
        "recent_key": (3, 3, 6),
        "recent_value": (3, 4, 12),
        "mask": (3, 9),
    }
    assert not any(name.startswith("index_") for name in make_layer().make_cache(3, 5))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"compress_rate": 0}, "`compress_rate` must be a positive integer"),
        ({"index_top_k": 0}, "`index_top_k` must be a positive integer"),
        ({"index_head_dim": 3}, "`index_head_dim` must not be less than `rope_head_dim`"),
    ],
)
def test_an_argument_out_of_its_range_is_refused(kwargs, message):
    with pytest.raises(InvalidInputError, match=message):
        make_layer(**kwargs)
