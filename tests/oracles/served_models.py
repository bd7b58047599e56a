"""What trainings by a parameter server are tried on."""

from collections import Counter
from typing import Any

import keras
import numpy as np


def build() -> keras.Model:
    """Returns a classifier of digits with moving statistics."""
    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(10),
        ]
    )


def make_optimizer(num_steps: int) -> keras.optimizers.Optimizer:
    """Returns Adam with a rate that falls to zero, so that a training comes to an end."""
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, num_steps - 10, warmup_target=2e-3, warmup_steps=10
    )
    return keras.optimizers.Adam(schedule)


def weights_of(model: keras.Model) -> list[Any]:
    """Returns all that a model holds."""
    return [keras.ops.convert_to_numpy(variable.value) for variable in model.variables]


def build_encoder() -> keras.Model:
    """Returns a model of BERT's shape that guesses masked tokens."""
    tokens = keras.Input((16,), dtype="int32")
    x = keras.layers.Embedding(400, 32)(tokens)
    position_embedding = keras.layers.Embedding(16, 32)(
        keras.ops.cumsum(keras.ops.ones_like(tokens), axis=1) - 1
    )
    x = keras.layers.LayerNormalization()(x + position_embedding)
    for _ in range(2):
        attended = keras.layers.MultiHeadAttention(2, 16)(x, x)
        x = keras.layers.LayerNormalization()(x + attended)
        inner = keras.layers.Dense(64, activation="gelu")(x)
        x = keras.layers.LayerNormalization()(x + keras.layers.Dense(32)(inner))
    return keras.Model(tokens, keras.layers.Dense(400)(x))


def masked_words(number: int = 800) -> tuple[Any, Any, Any]:
    """Returns English with every seventh token masked, the tokens, and where they are asked for."""
    from pydoc_data.topics import topics

    words = " ".join(topics[name] for name in sorted(topics)).lower().split()
    word_ids = {word: index + 2 for index, (word, _) in enumerate(Counter(words).most_common(398))}
    ids = np.array([word_ids.get(word, 1) for word in words[: number * 16]]).reshape(number, 16)
    is_masked = np.random.default_rng(0).random(ids.shape) < 1 / 7
    return np.where(is_masked, 0, ids), ids, is_masked.astype("float32")
