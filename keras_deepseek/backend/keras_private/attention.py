"""Access to the projections and the computation of Keras's attention layers."""

from typing import Any

import keras


def attention_projections(attention: keras.Layer) -> dict[str, keras.Layer]:
    """Returns the projections of a built attention layer of Keras by name.

    The names are "query", "key", "value", "output", and "gate" if there is one.
    """
    names = ("query", "key", "value", "gate", "output")
    projections = {name: getattr(attention, f"_{name}_dense", None) for name in names}
    return {name: projection for name, projection in projections.items() if projection is not None}


def attend(
    attention: keras.Layer, query: Any, key: Any, value: Any, mask: Any, training: bool | None
) -> Any:
    """Computes a Keras attention layer's output per head from projected queries, keys and values.

    The tensors have the shape `(batch_size, length, num_heads, dim)`. The boolean mask broadcasts
    to `(batch_size, query_length, key_length)`.
    """
    return attention._compute_attention(query, key, value, attention_mask=mask, training=training)[
        0
    ]


def uses_flash_attention(attention: keras.Layer) -> bool:
    """Returns True if a Keras attention layer must use flash attention."""
    return bool(attention._flash_attention)
