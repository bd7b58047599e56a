"""Conversion of calls like `keras.layers.MultiHeadAttention`'s for self-attention layers."""

from typing import Any

import keras

from keras_deepseek.errors import InvalidInputError

_MASKS = ("query_mask", "value_mask", "key_mask")


def read_self_attention(
    layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Converts the arguments of a call like `MultiHeadAttention`'s to those of a layer's `call`.

    Calls in the layer's own form pass unchanged. `query`, `value` and `key` must be the same
    object, so this runs before Keras casts each of them. Features that sparse attention lacks raise
    an `InvalidInputError`.
    """
    keywords = dict(kwargs)
    inputs = args[0] if args else keywords.pop("query", keywords.pop("inputs", None))
    positional = list(args[1:])
    while positional and positional[0] is inputs:
        del positional[0]
    tensors = [keywords.pop(name, None) for name in ("value", "key")]
    tensors += [argument for argument in positional[:1] if _is_floating(argument)]
    if any(tensor is not None and tensor is not inputs for tensor in tensors):
        raise InvalidInputError(
            f"{layer.name!r} is self-attention: query, value and key must be the same tensor. For "
            "cross-attention use keras.layers.MultiHeadAttention."
        )
    masks = [mask for mask in (keywords.pop(name, None) for name in _MASKS) if mask is not None]
    if masks:
        keywords.setdefault("mask", masks[0])
    if keywords.pop("attention_mask", None) is not None or keywords.pop(
        "return_attention_scores", False
    ):
        raise InvalidInputError(
            f"{layer.name!r} never computes a matrix of length by length, so it takes no "
            "`attention_mask` and returns no scores. Set its layout to choose visible blocks, and "
            "pass `mask=` to hide padding."
        )
    is_causal = keywords.pop("use_causal_mask", None)
    if is_causal is not None and bool(is_causal) != layer.use_causal_mask:
        raise InvalidInputError(
            f"{layer.name!r} was created with use_causal_mask={layer.use_causal_mask} and called "
            f"with use_causal_mask={is_causal}. Set it when you create the layer."
        )
    return (inputs, *positional), keywords


def _is_floating(value: Any) -> bool:
    is_tensor = hasattr(value, "dtype") and hasattr(value, "shape")
    return is_tensor and keras.backend.is_float_dtype(keras.backend.standardize_dtype(value.dtype))
