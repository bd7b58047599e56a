import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import DeepSeekMoE, ExpertRouter, HashRouter, SlidingWindowAttention
from keras_deepseek.models import DeepSeekV4DecoderLayer
from keras_deepseek.testing import LayerTestCase, assert_close
from tests.oracles.deepseek_v4_layers import SIZES

DIM, STREAMS = 6, 3


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def make_parts(router="score"):
    routers = {
        "score": lambda: ExpertRouter(4, 2, scoring="sqrt_softplus"),
        "hash": lambda: HashRouter(4, 2, vocabulary_size=11),
    }
    attention = SlidingWindowAttention(**SIZES["SlidingWindowAttention"])
    return attention, DeepSeekMoE(routers[router](), 5, clamp=10.0)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def test_it_passes_the_layer_routine():
    attention, experts = map(keras.saving.serialize_keras_object, make_parts())
    # The routine masks streams; a mask has one entry a token, see below.
    LayerTestCase().run_layer_test(
        DeepSeekV4DecoderLayer,
        {
            "attention": attention,
            "feed_forward": experts,
            "sinkhorn_iterations": 3,
            "stream_epsilon": 1e-5,
            "epsilon": 1e-5,
            "kernel_initializer": "he_normal",
        },
        (2, 5, STREAMS, DIM),
        supports_masking=False,
    )


def test_it_is_two_hyper_connections_around_normed_layers():
    layer = DeepSeekV4DecoderLayer(*make_parts("hash"))
    streams, tokens = (
        keras.ops.convert_to_tensor(draw(2, 5, STREAMS, DIM)),
        np.ones((2, 5), "int32"),
    )
    outputs = layer(streams, tokens)
    for weight in layer.trainable_weights:
        weight.assign(to_numpy(weight) + 0.3 * draw(*weight.shape, seed=len(weight.path)))
    outputs = to_numpy(layer(streams, tokens))
    x = streams
    for mixed, norm, inner in (
        (layer.attention_streams, layer.attention_norm, layer.attention),
        (
            layer.feed_forward_streams,
            layer.feed_forward_norm,
            lambda x: layer.feed_forward(x, token_ids=tokens),
        ),
    ):
        read, post, comb = mixed.collapse(x)
        x = mixed.merge(inner(norm(read)), x, post, comb)
    assert_close(outputs, to_numpy(x))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side):
    layer = DeepSeekV4DecoderLayer(*make_parts("hash"))
    streams, tokens = draw(1, 6, STREAMS, DIM), np.arange(6, dtype="int32")[None]
    expected = to_numpy(layer(streams, tokens))
    widths = (2, 0) if side == "left" else (0, 2)
    outputs = layer(
        np.pad(streams, ((0, 0), widths, (0, 0), (0, 0)), constant_values=9.0),
        np.pad(tokens, ((0, 0), widths), constant_values=10),
        mask=np.pad(np.ones((1, 6), bool), ((0, 0), widths)),
    )
    start = widths[0]
    assert_close(to_numpy(outputs)[:, start : start + 6], expected)


def test_decoding_from_a_cache_is_as_the_whole():
    layer = DeepSeekV4DecoderLayer(*make_parts("hash"))
    streams, tokens = draw(2, 6, STREAMS, DIM), np.arange(12, dtype="int32").reshape(2, 6) % 11
    expected = to_numpy(layer(streams, tokens))
    cache, outputs = layer.make_cache(2, 6), []
    for start, stop in ((0, 3), (3, 4), (4, 6)):
        piece, cache = layer(
            streams[:, start:stop], tokens[:, start:stop], cache=cache, cache_index=start
        )
        outputs.append(to_numpy(piece))
    assert_close(np.concatenate(outputs, 1), expected)


def test_what_is_no_layer_is_refused():
    with pytest.raises(InvalidInputError, match="`attention` must be a Keras layer"):
        DeepSeekV4DecoderLayer(None, make_parts()[1])
    with pytest.raises(InvalidInputError, match="num_streams"):
        DeepSeekV4DecoderLayer(*make_parts())(draw(5, DIM))
