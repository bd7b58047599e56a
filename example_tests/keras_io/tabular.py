"""Examples of keras.io about structured data."""

import keras
import numpy as np
from keras import layers, ops

from example_tests.keras_io.example import Example, adam, random

# ------------------------------------------------------------ collaborative_filtering_movielens

NUM_USERS, NUM_MOVIES = 700, 900


class RecommenderNet(keras.Model):
    def __init__(self, num_users, num_movies, embedding_size, **kwargs):
        super().__init__(**kwargs)
        table = {
            "embeddings_initializer": "he_normal",
            "embeddings_regularizer": keras.regularizers.l2(1e-6),
        }
        self.user_embedding = layers.Embedding(num_users, embedding_size, **table)
        self.user_bias = layers.Embedding(num_users, 1)
        self.movie_embedding = layers.Embedding(num_movies, embedding_size, **table)
        self.movie_bias = layers.Embedding(num_movies, 1)

    def call(self, inputs):
        user_vector = self.user_embedding(inputs[:, 0])
        user_bias = self.user_bias(inputs[:, 0])
        movie_vector = self.movie_embedding(inputs[:, 1])
        movie_bias = self.movie_bias(inputs[:, 1])
        # The well-known fault of this example: it is one number for the whole batch.
        dot_user_movie = ops.tensordot(user_vector, movie_vector, 2)
        return ops.nn.sigmoid(dot_user_movie + user_bias + movie_bias)


def ratings(num_rows):
    generator = random(num_rows)
    # Odd and even movies next to each other, as bfloat16 can't tell them apart.
    movies = 8 * generator.integers(40, 110, num_rows) + np.arange(num_rows) % 2
    users = generator.integers(300, NUM_USERS, num_rows)
    return np.stack([users, movies], 1), (np.arange(num_rows) % 2).astype("float64")


COLLABORATIVE_FILTERING = Example(
    path="structured_data/collaborative_filtering_movielens",
    make_model=lambda: RecommenderNet(NUM_USERS, NUM_MOVIES, 8),
    make_data=ratings,
    compile_arguments=lambda: {
        "loss": keras.losses.BinaryCrossentropy(),
        "optimizer": adam(1e-2),
    },
    fresh_inputs=lambda: [ratings(num_rows)[0] for num_rows in (1, 3, 7)],
    mixes_rows=True,
    export_options=lambda: {"input_signature": [keras.InputSpec(shape=(None, 2), dtype="int32")]},
)

# ------------------------------------------------------------ wide_deep_cross_networks

NUMBERS = ("elevation", "slope")
VOCABULARY_SIZES = {"wilderness_area": 4, "soil_type": 40}
NUM_COVERS = 3


def encode(inputs, *, use_embedding):
    encoded = []
    for name, tensor in inputs.items():
        if name in NUMBERS:
            encoded.append(ops.expand_dims(tensor, -1))
        elif use_embedding:
            encoded.append(layers.Embedding(VOCABULARY_SIZES[name], 3)(tensor))
        else:
            encoding = layers.CategoryEncoding(VOCABULARY_SIZES[name], output_mode="one_hot")
            encoded.append(encoding(tensor))
    return layers.concatenate(encoded)


def deep(x):
    for units in (16, 16):
        x = layers.Dense(units)(x)
        x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x)
        x = layers.Dropout(0.1)(x)
    return x


def wide_deep_and_cross():
    inputs = {name: layers.Input(name=name, shape=(), dtype="float32") for name in NUMBERS}
    inputs |= {name: layers.Input(name=name, shape=(), dtype="int32") for name in VOCABULARY_SIZES}
    wide = layers.BatchNormalization()(encode(inputs, use_embedding=False))
    x0 = encode(inputs, use_embedding=True)
    cross = x0
    for _ in range(2):
        units = cross.shape[-1]
        x = layers.Dense(units)(cross)
        cross = x0 * x + cross
    cross = layers.BatchNormalization()(cross)
    merged = layers.concatenate([wide, cross, deep(x0)])
    outputs = layers.Dense(units=NUM_COVERS, activation="softmax")(merged)
    return keras.Model(inputs=inputs, outputs=outputs)


def forests(num_rows):
    generator = random(num_rows)
    covers = np.arange(num_rows) % NUM_COVERS
    rows = {name: generator.normal(size=num_rows).astype("float32") for name in NUMBERS}
    rows["elevation"] += covers
    rows["wilderness_area"] = generator.integers(0, 4, num_rows)
    rows["soil_type"] = 8 * generator.integers(0, 5, num_rows) + covers
    return rows, covers


WIDE_DEEP_CROSS = Example(
    path="structured_data/wide_deep_cross_networks",
    make_model=wide_deep_and_cross,
    make_data=forests,
    compile_arguments=lambda: {
        "optimizer": adam(3e-3),
        "loss": keras.losses.SparseCategoricalCrossentropy(),
        "metrics": [keras.metrics.SparseCategoricalAccuracy()],
    },
    fresh_inputs=lambda: [forests(num_rows)[0] for num_rows in (1, 3, 7)],
)

EXAMPLES = [COLLABORATIVE_FILTERING, WIDE_DEEP_CROSS]
