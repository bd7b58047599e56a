import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models import DeepSeekV2Backbone, DeepSeekV2Config
from keras_deepseek.testing import assert_close
from tests.oracles import language_models
from tests.oracles.language_models import to_numpy


@pytest.fixture(scope="module")
def backbone():
    config = DeepSeekV2Config.from_preset("tiny", hidden_dim=24, vocabulary_size=31)
    return language_models.perturb(DeepSeekV2Backbone(config))


@pytest.mark.torch_alone
def test_its_parts_have_the_names_of_the_protocol(backbone):
    assert len(backbone.transformer_layers) == len(backbone.make_cache(2, 5)) == 2
    hidden = backbone.token_embedding(np.array([[1, 2, 3]]))
    for layer in backbone.transformer_layers:
        hidden = layer(hidden)
    tokens = np.array([[1, 2, 3]])
    batch = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    assert_close(to_numpy(backbone(batch)), to_numpy(backbone.final_norm(hidden)))


@pytest.mark.torch_alone
def test_a_mask_may_be_boolean_or_left_out_with_a_cache(backbone):
    tokens = np.array([[1, 2, 3]])
    outputs = [
        to_numpy(backbone.call_with_cache(tokens, backbone.make_cache(1, 4), 0, mask)[0])
        for mask in (None, np.ones((1, 3), bool), np.ones((1, 3), "int32"))
    ]
    assert_close(outputs[1], outputs[0])
    assert_close(outputs[2], outputs[0])


@pytest.mark.torch_alone
def test_a_sequence_beyond_the_longest_is_refused():
    config = DeepSeekV2Config.from_preset("tiny", max_length=4)
    backbone = DeepSeekV2Backbone(config)
    with pytest.raises(InvalidInputError, match="4"):
        backbone.call_with_cache(np.ones((1, 5), "int32"), backbone.make_cache(1, 8), 0)
