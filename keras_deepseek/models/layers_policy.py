"""Conversion of a model's `dtype` argument to a dtype policy for its layers."""

from typing import Any

import keras

from keras_deepseek.errors import InvalidInputError, NotSupportedError


def read_policy(dtype: Any) -> keras.DTypePolicy:
    """Returns the dtype policy for the layers of a model.

    `dtype` is a string, a policy, the config of one, or `None` for the global policy. A policy that
    quantizes is rejected.
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
            f"`dtype` can't be {policy.name!r}, which quantizes: weights must be initialized or "
            "read before they are quantized. Use another policy, as in dtype='bfloat16', and then "
            "call `model.quantize('int8')`."
        )
    return policy
