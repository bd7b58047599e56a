"""The norm that layers have inside: of each token, with a scale."""

from typing import Any

import keras


def make_token_norm(layer: Any, name: str, dim: int) -> keras.layers.RMSNormalization:
    """Returns an RMS norm of the last axis, built, that a mask may pass.

    Args:
        layer: `keras.Layer` with an `epsilon`. The one around.
        name: string. The name of the norm.
        dim: integer. The size of a token.
    """
    norm = keras.layers.RMSNormalization(
        epsilon=layer.epsilon, dtype=layer.dtype_policy, trainable=layer.trainable, name=name
    )
    norm.supports_masking = True  # It transforms each token alone; Keras's class can't know.
    norm.build((None, None, dim))
    return norm
