"""The RMS normalization that layers of this package contain."""

from typing import Any

import keras


def make_token_norm(layer: Any, name: str, dim: int) -> keras.layers.RMSNormalization:
    """Makes and builds an RMS normalization of the last axis that passes masks on."""
    norm = keras.layers.RMSNormalization(
        epsilon=layer.epsilon, dtype=layer.dtype_policy, trainable=layer.trainable, name=name
    )
    norm.supports_masking = True  # Correct for this axis: it transforms each token by itself.
    norm.build((None, None, dim))
    return norm
