"""Private names of Keras that the package can't do without.

Each has a canary test that says what broke when a Keras release moves it.
"""

from typing import Any

import keras


def flatten_layers(model: keras.Model) -> list[keras.Layer]:
    """Returns the model and every layer inside it, at any depth.

    `model.layers` stops at the first level: the projections inside an attention layer, or the cell
    inside a recurrent one, are found here alone.
    """
    return list(model._flatten_layers())


def first_call_shapes(model: keras.Model) -> dict[str, Any]:
    """Returns the shapes that a subclassed model was built with, by argument of `call`."""
    return dict(_untracked(model._build_shapes_dict or {}))


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """Returns the objects that `model.compile` was called with, by argument.

    The public `get_compile_config` serializes them, and so loses metrics and losses that are plain
    functions.
    """
    return dict(model._compile_config.config)


def attention_projections(attention: keras.Layer) -> dict[str, keras.Layer]:
    """Returns the projections of a built attention layer of Keras.

    Args:
        attention: `keras.layers.MultiHeadAttention` or `GroupQueryAttention`.

    Returns:
        A dict of layers: "query", "key", "value", "output", and "gate" where there is one.
    """
    names = ("query", "key", "value", "gate", "output")
    found = {name: getattr(attention, f"_{name}_dense", None) for name in names}
    return {name: projection for name, projection in found.items() if projection is not None}


def attend(
    attention: keras.Layer, query: Any, key: Any, value: Any, mask: Any, training: bool | None
) -> Any:
    """Returns the heads that an attention layer of Keras makes of what is projected already.

    Args:
        attention: `keras.layers.MultiHeadAttention` or `GroupQueryAttention`.
        query: Tensor of shape `(batch_size, query_length, num_heads, dim)`.
        key: Tensor of shape `(batch_size, key_length, num_heads, dim)`.
        value: Tensor of the same shape but for its dim.
        mask: Boolean tensor that broadcasts to `(batch_size, query_length, key_length)`.
        training: boolean or `None`. Whether to drop attention weights.
    """
    return attention._compute_attention(query, key, value, attention_mask=mask, training=training)[
        0
    ]


def uses_flash_attention(attention: keras.Layer) -> bool:
    """Returns whether an attention layer of Keras was told to use flash attention alone."""
    return bool(attention._flash_attention)


def _untracked(structure: Any) -> Any:
    """Returns Keras's tracked containers as plain ones, which JAX needs."""
    if isinstance(structure, dict):
        return {name: _untracked(value) for name, value in structure.items()}
    if isinstance(structure, list | tuple):
        return type(structure)(_untracked(value) for value in structure)
    return structure
