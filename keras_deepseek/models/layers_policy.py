"""The dtype policy that the layers of a model are made with."""

from typing import Any

import keras

from keras_deepseek.errors import InvalidInputError, NotSupportedError


def read_policy(dtype: Any) -> keras.DTypePolicy:
    """Returns the dtype policy that layers are made with.

    Args:
        dtype: string, `keras.DTypePolicy`, its config, or `None` for the global one.

    Raises:
        InvalidInputError: It is no policy.
        NotSupportedError: It is one that quantizes.
    """
    try:
        policy: keras.DTypePolicy = keras.dtype_policies.get(dtype)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"`dtype` must be a dtype policy, as in 'bfloat16' or 'mixed_float16'; received "
            f"{dtype!r}."
        ) from error
    if policy.quantization_mode is not None:
        raise NotSupportedError(
            f"`dtype` can't be {policy.name!r}, which quantizes: weights are drawn or read before "
            "they are quantized. Take another policy, as in dtype='bfloat16', and call "
            "`model.quantize('int8')` behind."
        )
    return policy
