import keras
import numpy as np
import pytest

from keras_deepseek.layers.attention.head_projection import make_projection, projection_arguments
from tests.oracles.attention_layers import ATTENTIONS, DIM, make_attention


class Projecting(keras.Layer):
    def __init__(self, use_bias=True):
        super().__init__(name="projecting")
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.GlorotUniform()
        self.bias_initializer = keras.initializers.Ones()


@pytest.mark.parametrize("use_bias", [False, True])
def test_a_projection_makes_heads_of_tokens(use_bias):
    projection = make_projection(Projecting(use_bias), "query", (2, 3))
    inputs = np.ones((1, 4, 5), "float32")
    outputs = keras.ops.convert_to_numpy(projection(inputs))
    kernel = keras.ops.convert_to_numpy(projection.kernel)
    np.testing.assert_allclose(outputs[0, 1], kernel.sum(0) + use_bias, rtol=1e-5)
    assert projection.name == "query"
    assert (projection.bias is not None) == use_bias


def test_two_projections_start_with_different_kernels():
    layer = Projecting()
    kernels = []
    for name in ("query", "key"):
        projection = make_projection(layer, name, (2, 3))
        projection.build((None, None, 5))
        kernels.append(keras.ops.convert_to_numpy(projection.kernel))
    assert not np.allclose(*kernels)


def test_projections_of_one_layer_share_its_dtype_and_no_initializer():
    layer = Projecting()
    arguments = [projection_arguments(layer, name) for name in ("query", "key")]
    assert [projection.pop("name") for projection in arguments] == ["query", "key"]
    assert all(projection.pop("dtype") is layer.dtype_policy for projection in arguments)
    query_initializer, key_initializer = (
        projection.pop("kernel_initializer") for projection in arguments
    )
    assert len({id(query_initializer), id(key_initializer), id(layer.kernel_initializer)}) == 3
    assert arguments == [{"trainable": True}] * 2


@pytest.mark.parametrize("name", sorted(set(ATTENTIONS) - {"CachedAttention"}))
def test_a_layer_that_is_made_frozen_is_frozen_in_a_model_until_it_is_thawed(name):
    layer, inputs = make_attention(name, trainable=False), keras.Input((5, DIM))
    model = keras.Model(inputs, layer(inputs))
    assert not model.trainable_weights
    layer.trainable = True
    expected = [weight.path for weight in make_attention(name, name=layer.name).trainable_weights]
    assert [weight.path for weight in model.trainable_weights] == expected
