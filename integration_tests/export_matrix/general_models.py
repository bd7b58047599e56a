"""Models of fixed features and images, and what structures and control flow there are."""

from typing import Any

import keras
import numpy as np
from keras import ops

from integration_tests.export_matrix.custom_layers import (
    DecayingSum,
    HalvedUntilSmall,
    Residual,
    ScaledSwish,
    SignedBranch,
    SortedFeatures,
)
from keras_deepseek import layers

Model = keras.Model


def features(width: int = 12, name: str = "features") -> Any:
    return keras.Input((width,), name=name)


def mlp() -> Model:
    x = inputs = features()
    x = layers.Dense(16, activation="relu", kernel_regularizer="l2")(x)
    x = layers.Dropout(0.5)(layers.GaussianNoise(0.1)(x))
    return Model(inputs, layers.Dense(5, activation="softmax")(layers.PReLU()(x)))


def activations() -> Model:
    names = "relu elu selu softplus softsign tanh sigmoid hard_sigmoid swish gelu mish leaky_relu"
    x = inputs = features()
    outputs = [
        layers.Activation(name)(x) for name in [*names.split(), "relu6", "celu", "exponential"]
    ]
    return Model(inputs, layers.Concatenate()(outputs))


def normalizations() -> Model:
    inputs = keras.Input((6, 6, 8), name="image")
    outputs = [
        layers.BatchNormalization()(inputs),
        layers.LayerNormalization()(inputs),
        layers.GroupNormalization(groups=4)(inputs),
        layers.UnitNormalization()(inputs),
        layers.RMSNormalization()(inputs),
    ]
    return Model(inputs, layers.Concatenate()(outputs))


def cnn_batch_norm() -> Model:
    x = inputs = keras.Input((16, 16, 3), name="image")
    for filters in (8, 16):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.MaxPooling2D()(layers.ReLU()(layers.BatchNormalization()(x)))
    return Model(inputs, layers.Dense(10, activation="softmax")(layers.Flatten()(x)))


def cnn_free_size() -> Model:
    x = inputs = keras.Input((None, None, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.AveragePooling2D(2, padding="same")(x)
    return Model(inputs, layers.Dense(4)(layers.GlobalMaxPooling2D()(x)))


def separable_cnn() -> Model:
    x = inputs = keras.Input((16, 16, 3), name="image")
    x = layers.SeparableConv2D(8, 3, padding="same", activation="relu")(x)
    x = layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2, padding="same")(x)
    return Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


def grouped_cnn() -> Model:
    x = inputs = keras.Input((12, 12, 4), name="image")
    x = layers.Conv2D(8, 3, groups=2, dilation_rate=2, activation="relu")(x)
    return Model(inputs, layers.Cropping2D(1)(layers.ZeroPadding2D(2)(x)))


def autoencoder() -> Model:
    x = inputs = keras.Input((16, 16, 1), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.UpSampling2D(2, interpolation="bilinear")(x)
    return Model(inputs, layers.Conv2D(1, 3, padding="same")(x))


def cnn_1d_causal() -> Model:
    x = inputs = keras.Input((None, 4), name="signal")
    for rate in (1, 2, 4):
        x = layers.Conv1D(8, 3, padding="causal", dilation_rate=rate, activation="relu")(x)
    return Model(inputs, layers.Dense(2)(x))


def cnn_3d() -> Model:
    x = inputs = keras.Input((8, 8, 8, 1), name="volume")
    x = layers.MaxPooling3D()(layers.Conv3D(4, 3, padding="same", activation="relu")(x))
    return Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def vision_transformer() -> Model:
    inputs = keras.Input((16, 16, 3), name="image")
    x = layers.Reshape((16, 24))(layers.Conv2D(24, 4, strides=4)(inputs))
    positions = layers.Embedding(16, 24)(ops.arange(16))
    x = x + positions
    normed = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(3, 8)(normed, normed)
    x = x + layers.Dense(24)(layers.Dense(48, activation="gelu")(layers.LayerNormalization()(x)))
    return Model(inputs, layers.Dense(10, activation="softmax")(ops.mean(x, axis=1)))


def preprocessing() -> Model:
    normalize = layers.Normalization()
    normalize.adapt(np.random.default_rng(0).normal(3.0, 2.0, (64, 8, 8, 3)))
    x = inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Resizing(12, 12)(layers.Rescaling(1 / 2)(normalize(x)))
    return Model(inputs, layers.Conv2D(4, 3)(layers.CenterCrop(8, 8)(x)))


def dict_inputs_and_outputs() -> Model:
    inputs = {"wide": features(name="wide"), "deep": features(4, name="deep")}
    both = layers.Concatenate()([inputs["deep"], inputs["wide"]])
    outputs = {"score": layers.Dense(1)(both), "label": layers.Dense(3)(inputs["wide"])}
    return Model(inputs, outputs)


def list_inputs_and_outputs() -> Model:
    first, second = features(6, "left"), features(6, "right")
    shared = layers.Dense(5, activation="tanh")
    x, y = shared(first), shared(second)
    return Model([first, second], [layers.Dot(1)([x, y]), layers.Subtract()([x, y]), first])


def same_keys() -> Model:
    inputs = {"wide": features(name="wide"), "deep": features(4, name="deep")}
    outputs = {name: layers.Dense(3)(tensor) for name, tensor in inputs.items()}
    return Model(inputs, outputs)


def nested() -> Model:
    inner_inputs = features(12, "inner")
    inner = Model(inner_inputs, layers.Dense(12, activation="relu")(inner_inputs), name="inner")
    inputs = features()
    tower = keras.Sequential([layers.Dense(12), layers.BatchNormalization(), ScaledSwish()])
    return Model(inputs, layers.Add()([tower(inner(inputs)), inner(inner(inputs))]))


def subclassed() -> Model:
    model = Residual()
    model(np.zeros((2, 12), "float32"))
    return model


def custom_layer() -> Model:
    inputs = features()
    return Model(inputs, layers.Dense(3)(ScaledSwish()(layers.Dense(8)(inputs))))


def sorting() -> Model:
    inputs = features()
    return Model(inputs, SortedFeatures()(inputs))


def integer_outputs() -> Model:
    inputs = features()
    scores = layers.Dense(7)(inputs)
    return Model(inputs, {"label": ops.argmax(scores, axis=-1), "is_large": scores > 0.5})


def scan() -> Model:
    inputs = keras.Input((9, 4), name="signal")
    return Model(inputs, layers.Dense(3)(DecayingSum()(layers.Dense(4)(inputs))))


def cond() -> Model:
    inputs = features()
    return Model(inputs, layers.Dense(4)(SignedBranch()(inputs)))


def while_on_data() -> Model:
    inputs = features()
    return Model(inputs, layers.Dense(4)(HalvedUntilSmall()(inputs)))


def mixed_float16() -> Model:
    x = inputs = features()
    x = layers.Dense(16, activation="relu", dtype="mixed_float16")(x)
    return Model(inputs, layers.Dense(4, dtype="float32")(x))


MODELS = {
    builder.__name__: builder
    for builder in (
        mlp,
        activations,
        normalizations,
        cnn_batch_norm,
        cnn_free_size,
        separable_cnn,
        grouped_cnn,
        autoencoder,
        cnn_1d_causal,
        cnn_3d,
        vision_transformer,
        preprocessing,
        dict_inputs_and_outputs,
        list_inputs_and_outputs,
        same_keys,
        nested,
        subclassed,
        custom_layer,
        sorting,
        integer_outputs,
        scan,
        cond,
        while_on_data,
        mixed_float16,
    )
}
