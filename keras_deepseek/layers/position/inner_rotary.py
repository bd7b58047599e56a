"""The rotary embedding that attention layers have inside, checked by the names of their arguments.

Its errors would name arguments of `RotaryEmbedding` that the user of the layer never passed.
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
    """Returns a rotary embedding in the dtype of a layer.

    Args:
        layer: `keras.Layer`. The one around.
        rope_max_wavelength: float. That of the layer.
        rope_scaling: dict or `None`. That of the layer.
        **kwargs: Further arguments of `RotaryEmbedding`.

    Raises:
        InvalidInputError: One of them is out of its range.
    """
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
    """Returns the `rotary` that a layer was given, which may be a serialized one.

    Args:
        rotary: `RotaryEmbedding`, the serialized form of one, or `None`.

    Raises:
        InvalidInputError: It is something else.
    """
    if isinstance(rotary, dict):
        rotary = keras.saving.deserialize_keras_object(rotary)
    if rotary is not None and not isinstance(rotary, RotaryEmbedding):
        raise InvalidInputError(
            f"`rotary` must be a `RotaryEmbedding` or None, received {rotary!r}."
        )
    return rotary
