"""Wrapper that gives Keras's own attention layers a key-value cache."""

from typing import Any

import keras
from keras import ops

from keras_deepseek.backend.keras_private.layers import (
    attend,
    attention_projections,
    uses_flash_attention,
)
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.attention.head_projection import project_tokens
from keras_deepseek.layers.attention.key_value_cache import (
    Cache,
    append_to_cache,
    make_attention_mask,
)
from keras_deepseek.layers.attention.self_attention_layer import (
    SelfAttentionLayer,
    check_call,
    check_room,
)
from keras_deepseek.layers.inner_layers import serialize_layer
from keras_deepseek.layers.input_check import Shape, read_dim
from keras_deepseek.layers.position.rotary_embedding import read_rotary

_WRAPPED = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)


@keras.saving.register_keras_serializable("keras_deepseek")
class CachedAttention(SelfAttentionLayer):
    """Causal self-attention by a layer of Keras, with a cache of its keys and values.

    Choose it to decode with a model that was built from `keras.layers.MultiHeadAttention` or
    `keras.layers.GroupQueryAttention`. It wraps such a layer and adds no weights, so checkpoints of
    the wrapped layer fit. Without a cache it computes

    ```
    attention(inputs, inputs, use_causal_mask=True)
    ```

    With a cache it computes the same for some tokens at a time, from the keys and values of earlier
    calls. A boolean mask (from Keras, or `mask`) hides padding from other tokens and is passed on.
    Outputs at padding have no meaning. A cache is a dict of `"key"`, `"value"` and `"mask"`, each
    of shape `(batch_size, max_length, ...)`: for `GroupQueryAttention` it holds the heads of keys
    and values before they are repeated.

    Args:
        attention: `keras.layers.MultiHeadAttention`, `keras.layers.GroupQueryAttention`, or the
            serialized form of one. The layer to wrap. It may be built already, and be shared.
        rotary: `RotaryEmbedding`, its serialized form, or `None`. Rotates queries and keys by their
            positions. Defaults to `None`.
        **kwargs: Arguments of `keras.Layer`, such as `name`. `dtype` defaults to that of
            `attention`.

    Returns:
        A tensor of the shape of `inputs`, unless `attention` has an `output_shape`; with a cache, a
        pair of that tensor and the new cache.

    Raises:
        InvalidInputError: `attention` has another class, several attention axes, only flash
            attention, or overrides `call`; shapes do not match; or the cache is full.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from keras_deepseek.layers import CachedAttention
    >>> layer = CachedAttention(keras.layers.GroupQueryAttention(8, 4, 2))
    >>> prompt = np.ones((2, 5, 12), "float32")
    >>> cache = layer.make_cache(batch_size=2, max_length=10)
    >>> outputs, cache = layer(prompt, cache=cache, cache_index=0)
    >>> outputs, cache = layer(prompt[:, :1], cache=cache, cache_index=5)
    >>> tuple(outputs.shape)
    (2, 1, 12)
    """

    def __init__(self, attention: Any, *, rotary: Any = None, **kwargs: Any) -> None:
        if isinstance(attention, dict):
            attention = keras.saving.deserialize_keras_object(attention)
        _check_attention(attention)
        super().__init__(**{"dtype": attention.dtype_policy, **kwargs})
        self.attention = attention
        self.use_causal_mask = True
        config = attention.get_config()
        self._sliding_window = config.get("sliding_window")  # Keras 3.13 has none.
        if isinstance(attention, keras.layers.GroupQueryAttention):
            self._repeats = attention.num_query_heads // attention.num_key_value_heads
            sizes = (attention.head_dim, attention.head_dim)
        else:
            self._repeats = 1
            sizes = (attention.key_dim, attention.value_dim)
        heads = config.get("num_key_value_heads", config.get("num_heads"))
        self._entries: dict[str, tuple[int, ...]] = {
            "key": (heads, sizes[0]),
            "value": (heads, sizes[1]),
        }
        self.rotary = read_rotary(self, rotary, head_dim=sizes[0])
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        read_dim(self, input_shape)
        if not self.attention.built:
            self.attention.build(input_shape, input_shape)
        if self.rotary is not None:
            self.rotary.build((None, None, *self._entries["key"]))
        self._projections = attention_projections(self.attention)
        for projection in self._projections.values():
            projection.supports_masking = True  # Avoids Keras's warning; `call` applies the mask.

    @property
    def _cache_dtype(self) -> str:
        return str(self.attention.compute_dtype)

    @property
    def _cache_entries(self) -> dict[str, tuple[int, ...]]:
        return self._entries

    def call(
        self,
        inputs: Any,
        mask: Any = None,
        positions: Any = None,
        cache: Cache | None = None,
        cache_index: Any = None,
        training: bool | None = None,
        inputs_mask: Any = None,
    ) -> Any:
        mask = check_call(self, inputs, (mask, inputs_mask), cache, cache_index)
        check_room(self, inputs, positions, cache_index)
        if cache is None and mask is None and self.rotary is None:
            # Keras may have a faster kernel without an explicit mask.
            outputs = self.attention(inputs, inputs, use_causal_mask=True, training=training)
            return ops.cast(outputs, self.compute_dtype)
        start = 0 if cache is None else cache_index
        projections = attention_projections(self.attention)
        query, key, value = (
            project_tokens(projections[name], inputs) for name in ("query", "key", "value")
        )
        query, key = (self._rotate(x, positions, start) for x in (query, key))
        entries = {"key": key, "value": value}
        if cache is not None:
            cache = append_to_cache(cache, cache_index, entries, mask)
            # Attend to all slots of the cache, which now has the call's own tokens too.
            entries, mask = cache, cache["mask"]
        visible = make_attention_mask(
            ops.shape(inputs)[1],
            ops.shape(entries["key"])[1],
            key_mask=mask,
            start_index=start,
            use_causal_mask=True,
            sliding_window=self._sliding_window,
        )
        # Consecutive heads of queries share one head of keys and values.
        key, value = (ops.repeat(entries[name], self._repeats, axis=2) for name in ("key", "value"))
        heads = attend(self.attention, query, key, value, visible, training)
        if "gate" in projections:
            heads = heads * project_tokens(projections["gate"], inputs)
        outputs = ops.cast(project_tokens(projections["output"], heads), self.compute_dtype)
        return outputs if cache is None else (outputs, cache)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(self.attention.compute_output_shape(input_shape, input_shape))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "attention": serialize_layer(self.attention),
            "rotary": None if self.rotary is None else serialize_layer(self.rotary),
        }


def _check_attention(attention: Any) -> None:
    if not isinstance(attention, _WRAPPED):
        raise InvalidInputError(
            f"`attention` must be a `MultiHeadAttention` or `GroupQueryAttention` of Keras, "
            f"received {attention!r}. The attention layers of this package have a cache already."
        )
    if not any(type(attention).call is wrapped.call for wrapped in _WRAPPED):
        raise InvalidInputError(
            f"{type(attention).__name__} overrides `call`, which a cache would bypass. Override "
            f"`_compute_attention` instead, or pass Keras's own layer."
        )
    axes = attention.get_config().get("attention_axes")
    if axes is not None and tuple(axes) != (1,):
        raise InvalidInputError(
            f"`attention_axes` of {attention.name!r} is {axes}, but a cache holds tokens along "
            f"axis 1 only. Use `attention_axes=None`, and move other axes to the batch."
        )
    if uses_flash_attention(attention):
        raise InvalidInputError(
            f"{attention.name!r} allows only flash attention, which can't apply a cache's mask. "
            f"Create it with `flash_attention=None`, and without "
            f"`keras.config.enable_flash_attention()`."
        )
