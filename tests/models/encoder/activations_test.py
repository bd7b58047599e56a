import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models.encoder.transformer_encoder import (
    ACTIVATIONS,
    gelu_approximate,
    read_activation,
)
from keras_deepseek.testing import assert_close


def test_the_approximation_is_the_formula_and_not_the_exact_one():
    x = np.linspace(-3, 3, 7).astype("float32")
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    outputs = keras.ops.convert_to_numpy(gelu_approximate(x))
    assert_close(outputs, 0.5 * x * (1 + np.tanh(inner)))
    assert np.abs(outputs - keras.ops.convert_to_numpy(keras.activations.gelu(x))).max() > 1e-5


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_one_is_the_same_after_it_was_saved(name):
    config = keras.activations.serialize(read_activation(name))
    assert keras.activations.get(config) is read_activation(name)


def test_an_unknown_one_names_the_nearest():
    with pytest.raises(InvalidInputError, match="did you mean 'silu'"):
        read_activation("silou")
