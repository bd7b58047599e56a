"""The example of keras.io that classifies time series."""

import keras
import numpy as np
from keras import layers

from example_tests.keras_io.example import Example, adam, random

LENGTH, NUM_FEATURES, NUM_CLASSES = 20, 3, 2


def transformer_encoder(inputs, head_size, num_heads, ff_dim, dropout=0):
    x = layers.MultiHeadAttention(key_dim=head_size, num_heads=num_heads, dropout=dropout)(
        inputs, inputs
    )
    x = layers.Dropout(dropout)(x)
    x = layers.LayerNormalization(epsilon=1e-6)(x)
    shortcut = x + inputs
    x = layers.Conv1D(filters=ff_dim, kernel_size=1, activation="relu")(shortcut)
    x = layers.Dropout(dropout)(x)
    x = layers.Conv1D(filters=inputs.shape[-1], kernel_size=1)(x)
    x = layers.LayerNormalization(epsilon=1e-6)(x)
    return x + shortcut


def transformer_classifier():
    inputs = keras.Input(shape=(LENGTH, NUM_FEATURES))
    x = inputs
    for _ in range(2):
        x = transformer_encoder(x, head_size=8, num_heads=2, ff_dim=4, dropout=0.25)
    x = layers.GlobalAveragePooling1D(data_format="channels_first")(x)
    x = layers.Dense(16, activation="relu")(x)
    x = layers.Dropout(0.4)(x)
    return keras.Model(inputs, layers.Dense(NUM_CLASSES, activation="softmax")(x))


def engine_noise(num_rows):
    classes = np.arange(num_rows) % NUM_CLASSES
    waves = np.sin(np.arange(LENGTH) * (1 + classes[:, None]))
    noise = random(num_rows).normal(size=(num_rows, LENGTH, NUM_FEATURES))
    return waves[..., None] + 0.3 * noise, classes


CLASSIFICATION = Example(
    path="timeseries/timeseries_classification_transformer",
    make_model=transformer_classifier,
    make_data=engine_noise,
    compile_arguments=lambda: {
        "loss": "sparse_categorical_crossentropy",
        "optimizer": adam(5e-3),
        "metrics": ["sparse_categorical_accuracy"],
    },
    fresh_inputs=lambda: [engine_noise(num_rows)[0] for num_rows in (1, 3, 7)],
)

EXAMPLES = [CLASSIFICATION]
