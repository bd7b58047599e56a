import keras
import numpy as np
from keras import Input, Model, layers

from keras_deepseek.backend.input_scales import input_scales


def test_what_the_first_layers_expect_is_found():
    image, features, tokens = Input((4, 4, 1)), Input((2,)), Input((3,), dtype="int32")
    scaled = layers.Rescaling(1 / 255, offset=-0.5)(image)
    normal = layers.Normalization(mean=[1e5, 3.0], variance=[4e8, 9.0])(features)
    embedded = layers.Embedding(5, 2)(tokens)
    scales = input_scales(Model([image, features, tokens], [scaled, normal, embedded]), 3)
    np.testing.assert_allclose(scales[0], (127.5, 255.0))
    np.testing.assert_allclose(scales[1][0].reshape(-1), [1e5, 3.0])
    np.testing.assert_allclose(scales[1][1].reshape(-1), [2e4, 3.0])
    assert scales[2] is None


def test_layers_of_a_model_inside_and_of_a_stack_are_found():
    stack = keras.Sequential([Input((4,)), layers.Rescaling(0.1), layers.Dense(2)])
    (scale,) = input_scales(stack, 1)
    np.testing.assert_allclose(scale, (0.0, 10.0))
    inputs = Input((4,))
    (scale,) = input_scales(Model(inputs, stack(inputs)), 1)
    np.testing.assert_allclose(scale, (0.0, 10.0))


def test_others_expect_nothing():
    inputs = Input((4,))
    later = layers.Rescaling(0.1)(layers.Dense(3)(inputs))
    back = layers.Normalization(mean=1.0, variance=4.0, invert=True)(inputs)
    assert input_scales(Model(inputs, [later, back]), 1) == [None]
    assert input_scales(Model(inputs, layers.Rescaling(0.0)(inputs)), 1) == [None]

    class Subclassed(Model):
        def call(self, inputs):
            return inputs

    assert input_scales(Subclassed(), 2) == [None, None]
