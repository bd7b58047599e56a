import keras
import numpy as np

from keras_deepseek.layers import DeepSeekMoE, SwiGLU
from keras_deepseek.models import DeepSeekV2Backbone, DeepSeekV2Config


def test_it_has_the_layers_of_its_config():
    config = DeepSeekV2Config.from_preset("tiny", num_layers=3, num_dense_layers=2)
    backbone = DeepSeekV2Backbone(config, name="body")
    kinds = [type(block.feed_forward) for block in backbone.transformer_layers]
    assert kinds == [SwiGLU, SwiGLU, DeepSeekMoE]
    assert backbone.output_shape == (None, None, config.hidden_dim)


def test_the_round_trip_through_its_config_keeps_policy_and_shapes():
    backbone = DeepSeekV2Backbone(DeepSeekV2Config.from_preset("tiny"), dtype="bfloat16")
    revived = DeepSeekV2Backbone.from_config(backbone.get_config())
    assert revived.config == backbone.config
    assert [(w.path, w.dtype) for w in revived.weights] == [
        (w.path, w.dtype) for w in backbone.weights
    ]
    tokens = np.array([[3, 1, 4]])
    outputs = revived({"token_ids": tokens, "padding_mask": np.ones_like(tokens)})
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
