import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import MultiTokenPrediction, SwiGLU
from keras_deepseek.models import MultiTokenLoss
from keras_deepseek.testing import assert_close


def make_layer(**kwargs):
    embedding, head = keras.layers.Embedding(9, 6), keras.layers.Dense(9)
    return MultiTokenLoss(MultiTokenPrediction(SwiGLU(5), embedding, head, **kwargs))


def call(layer, **kwargs):
    tokens = np.array([[1, 2, 3, 4, 5]])
    hidden = np.random.default_rng(0).normal(size=(1, 5, 6)).astype("float32")
    logits = np.ones((1, 5, 9), "float32")
    outputs = layer(logits, hidden, tokens, **kwargs)
    assert_close(keras.ops.convert_to_numpy(outputs), logits)
    return [float(keras.ops.convert_to_numpy(loss)) for loss in layer.losses]


def test_it_adds_the_loss_of_the_modules_in_training_alone():
    layer = make_layer()
    assert call(layer) == []
    (loss,) = call(layer, training=True)
    assert loss > 0
    (masked,) = call(layer, training=True, mask=np.array([[True, True, True, False, False]]))
    assert masked != loss


def test_a_weight_of_zero_adds_nothing():
    assert call(make_layer(loss_weight=0.0), training=True) == []


def test_it_survives_its_config():
    layer = make_layer(depth=2)
    revived = MultiTokenLoss.from_config(layer.get_config())
    assert revived.prediction.depth == 2


def test_another_layer_is_refused():
    with pytest.raises(InvalidInputError, match="must be a `MultiTokenPrediction`"):
        MultiTokenLoss(SwiGLU(5))
