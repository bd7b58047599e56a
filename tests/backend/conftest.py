"""Models of each kind that a backend must take."""

import keras
import pytest


def build_convolutional() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )


def build_recurrent() -> keras.Model:
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    features = keras.layers.Embedding(11, 6, mask_zero=True)(tokens)
    return keras.Model(tokens, keras.layers.LSTM(5, name="state")(features))


def build_two_inputs_and_a_dict() -> keras.Model:
    left_input = keras.Input((4,), name="left")
    right_input = keras.Input((3,), name="right")
    both = keras.layers.Concatenate()([left_input, right_input])
    return keras.Model(
        {"left": left_input, "right": right_input},
        {"sum": keras.layers.Dense(2)(both), "product": keras.layers.Dense(5)(both)},
    )


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(2)
        self.drop = keras.layers.Dropout(0.5)

    def call(self, inputs, training=False):
        return self.drop(self.dense(inputs), training=training)


def build_subclassed() -> keras.Model:
    model = Subclassed()
    model(keras.ops.zeros((1, 4)))
    return model


BUILDERS = {
    "convolutional": build_convolutional,
    "recurrent": build_recurrent,
    "two inputs, a dict out": build_two_inputs_and_a_dict,
    "subclassed": build_subclassed,
}


@pytest.fixture(params=BUILDERS)
def model(request):
    return BUILDERS[request.param]()


@pytest.fixture
def convolutional():
    return build_convolutional()
