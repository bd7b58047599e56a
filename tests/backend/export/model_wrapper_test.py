import keras
import numpy as np
import pytest
from keras import layers

from keras_deepseek.backend.export.model_wrapper import ModelWrapper
from keras_deepseek.backend.export.named_model import NamedModel


class Doubled(ModelWrapper):
    def __init__(self, original):
        super().__init__(name=original.name)
        self.original = original
        self.built = True

    def call(self, inputs):
        return self.original(inputs)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return {"score": self.dense(inputs)}


def functional():
    inputs = keras.Input((None,), dtype="int32", name="tokens")
    x = layers.Embedding(10, 4)(inputs)
    return keras.Model([inputs], [layers.Dense(2)(x), layers.Dense(1, name="score")(x)])


def sequential():
    return keras.Sequential([keras.Input((None,), dtype="int32"), layers.Embedding(10, 4)])


def subclassed():
    model = Subclassed()
    model(np.ones((2, 3), "float32"))
    return model


@pytest.mark.parametrize("build", [functional, sequential, subclassed])
def test_a_wrapper_has_the_signature_of_its_original(build):
    original = build()
    assert NamedModel(Doubled(original)).signature == NamedModel(original).signature
