"""Export from JAX and torch goes through TensorFlow: these tests ask for it where they need it."""

import importlib.util

import keras
import pytest


def build_digits() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax", name="probabilities"),
        ],
        name="digits",
    )


def build_text() -> keras.Model:
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    features = keras.layers.Embedding(11, 6, mask_zero=True)(tokens)
    return keras.Model(tokens, keras.layers.LSTM(5)(features), name="text")


def build_two_heads() -> keras.Model:
    left, right = keras.Input((4,), name="left"), keras.Input((3,), name="right")
    both = keras.layers.Concatenate()([left, right])
    outputs = {"score": keras.layers.Dense(1)(both), "copy": keras.layers.Identity()(left)}
    return keras.Model({"left": left, "right": right}, outputs, name="two_heads")


BUILDERS = {"digits": build_digits, "text": build_text, "two heads": build_two_heads}


@pytest.fixture(params=BUILDERS)
def model(request):
    return BUILDERS[request.param]()


@pytest.fixture
def digits():
    return build_digits()


@pytest.fixture
def tensorflow_installed():
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("TensorFlow, which this export goes through, is not installed")


@pytest.fixture
def tensorflow_missing():
    if importlib.util.find_spec("tensorflow") is not None:
        pytest.skip("TensorFlow is installed")
