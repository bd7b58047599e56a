import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import (
    CompressedSparseAttention,
    ExpertRouter,
    HashRouter,
    HeavilyCompressedAttention,
    SlidingWindowAttention,
)
from keras_deepseek.models import DeepSeekV4Backbone
from keras_deepseek.testing import assert_close
from tests.oracles.deepseek_v4_models import draw_tokens, make_config, perturb


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def make_backbone(**kwargs):
    return perturb(DeepSeekV4Backbone(make_config(**kwargs)))


def test_each_layer_is_as_the_config_names_it():
    backbone = make_backbone()
    kinds = [type(layer.attention) for layer in backbone.transformer_layers]
    assert kinds == [
        SlidingWindowAttention,
        CompressedSparseAttention,
        HeavilyCompressedAttention,
    ]
    routers = [type(layer.feed_forward.router) for layer in backbone.transformer_layers]
    assert routers == [HashRouter, ExpertRouter, ExpertRouter]
    config = backbone.config
    for layer in backbone.transformer_layers:
        attention, rotary = layer.attention, layer.attention.rotary
        is_near = type(attention) is SlidingWindowAttention
        prefix = "" if is_near else "compress_"
        assert rotary.max_wavelength == getattr(config, f"{prefix}rope_max_wavelength")
        assert attention.sliding_window == config.sliding_window
        assert layer.feed_forward.clamp == config.clamp


def test_the_config_round_trip_keeps_the_weights_shapes():
    backbone = make_backbone()
    revived = DeepSeekV4Backbone.from_config(backbone.get_config())
    assert revived.config == backbone.config
    assert [tuple(w.shape) for w in revived.weights] == [tuple(w.shape) for w in backbone.weights]


def test_a_call_with_a_cache_is_as_one_without():
    backbone = make_backbone()
    inputs = draw_tokens(2, 19)
    expected = to_numpy(backbone(inputs))
    hidden, cache = backbone.call_with_cache(
        inputs["token_ids"], backbone.make_cache(2, 19), 0, inputs["padding_mask"]
    )
    assert_close(to_numpy(hidden), expected)
    assert [sorted(layer_cache) for layer_cache in cache] == [
        sorted(layer_cache) for layer_cache in backbone.make_cache(2, 19)
    ]


def test_a_cache_of_another_model_is_refused():
    backbone = make_backbone()
    cache = backbone.make_cache(1, 4)
    with pytest.raises(InvalidInputError, match="one entry for each of the 3 layers, received 2"):
        backbone.call_with_cache(np.ones((1, 1), "int32"), cache[:2], 0)
