"""The rotary embedding that an attention layer owns.

Errors name the arguments of the attention layer, because its user never passed those of
`RotaryEmbedding`.
"""

from collections.abc import Mapping
from typing import Any

import keras

from keras_deepseek.checks import check_number
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.position.rotary_embedding import RotaryEmbedding
from keras_deepseek.layers.position.rotary_scaling import check_scaling


def make_rotary(
    layer: keras.Layer,
    rope_max_wavelength: float,
    rope_scaling: Mapping[str, Any] | None,
    **kwargs: Any,
) -> RotaryEmbedding:
    """Makes an attention layer's `RotaryEmbedding`, in the dtype of that layer."""
    check_number("rope_max_wavelength", rope_max_wavelength, above=1)
    if rope_scaling is not None:
        rope_scaling = check_scaling(rope_scaling, "rope_scaling")
    return RotaryEmbedding(
        rope_max_wavelength,
        scaling=rope_scaling,
        dtype=layer.dtype_policy,
        name="rotary",
        **kwargs,
    )


def read_rotary(rotary: Any) -> RotaryEmbedding | None:
    """Returns an attention layer's `rotary` argument as a `RotaryEmbedding` or `None`.

    It may be serialized.
    """
    if isinstance(rotary, dict):
        rotary = keras.saving.deserialize_keras_object(rotary)
    if rotary is not None and not isinstance(rotary, RotaryEmbedding):
        raise InvalidInputError(
            f"`rotary` must be a `RotaryEmbedding` or None, received {rotary!r}."
        )
    return rotary
