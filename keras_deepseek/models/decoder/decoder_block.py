"""A Transformer block of a language model: attention, then a feed-forward layer."""

import inspect
from typing import Any

import keras
from keras import ops

from keras_deepseek.backend.keras_private.masks import set_mask
from keras_deepseek.checks import check_number
from keras_deepseek.layers.attention.key_value_cache import Cache
from keras_deepseek.layers.inner_layers import (
    build_layer,
    call_layer,
    make_token_norm,
    revive_layer,
    serialize_layer,
    take_arguments,
)
from keras_deepseek.layers.input_check import Shape, read_dim
from keras_deepseek.layers.last_tokens import shape_of_last, take_last


@keras.saving.register_keras_serializable("keras_deepseek")
class DecoderBlock(keras.Layer):
    """A pre-norm block: `y = x + attention(norm(x))`, then `y + feed_forward(norm(y))`.

    Choose it to build a language model from any attention layer of this package that has a cache,
    and any feed-forward layer. Both norms are RMS norms. A mask is given to both layers if they
    take one, and is passed on. The cache is the cache of the attention layer.

    Args:
        attention: `keras.Layer`, or its serialized config. It keeps the shape of its inputs, and
            has `make_cache`.
        feed_forward: `keras.Layer`, or its serialized config. It keeps the shape of its inputs.
        epsilon: float. Added to the mean squares in the norms. Defaults to `1e-6`.
        **kwargs: Arguments of `keras.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: Floating-point tensor of shape `(batch_size, length, dim)`.
        mask: Boolean tensor of shape `(batch_size, length)`, false for padding, or `None` for the
            mask that `inputs` carry.
        positions: Integer tensor of shape `(batch_size, length)`, or `None` to count slots.
        cache: dict of tensors from `make_cache` or an earlier call, or `None`.
        cache_index: integer, or integer tensor, scalar or of shape `(batch_size,)`. The slot of the
            first token in the cache, of all sequences or of each.
        attention_mask: Boolean tensor that broadcasts to `(batch_size, length, key_length)`, or
            `None`. For an attention layer that takes one.
        token_ids: Integer tensor of shape `(batch_size, length)`, or `None`. For a feed-forward
            layer that needs them, such as a `DeepSeekMoE` with a `HashRouter`.
        inputs_mask: As `mask`. Keras fills it in from `inputs` if there are further tensors.
        num_outputs: integer or `None`. Number of last tokens to return outputs for; `None` is all.
            The other tokens are attended to and cached. An attention layer that does not take this
            argument computes all.

    Returns:
        A tensor of the shape of `inputs`, or with `num_outputs` tokens. With a cache, a pair of it
        and the new cache.

    Raises:
        InvalidInputError: An argument is not a layer, or a layer does not take an argument of the
            call.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.layers import MultiHeadLatentAttention, RotaryEmbedding, SwiGLU
    >>> from keras_deepseek.models import DecoderBlock
    >>> attention = MultiHeadLatentAttention(
    ...     4, nope_head_dim=8, rope_head_dim=4, value_head_dim=8, key_value_lora_rank=16,
    ...     rotary=RotaryEmbedding(), use_causal_mask=True,
    ... )
    >>> block = DecoderBlock(attention, SwiGLU(64))
    >>> tuple(block(np.ones((2, 5, 32), "float32")).shape)
    (2, 5, 32)

    Reference:

    - [On Layer Normalization in the Transformer Architecture (Xiong et al., 2020)](
      https://arxiv.org/abs/2002.04745)
    """

    def __init__(
        self, attention: Any, feed_forward: Any, *, epsilon: float = 1e-6, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.attention = revive_layer("attention", attention)
        self.feed_forward = revive_layer("feed_forward", feed_forward)
        self.epsilon = check_number("epsilon", epsilon, minimum=0)
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        dim = read_dim(self, input_shape)
        self.attention_norm = make_token_norm(self, "attention_norm", dim)
        build_layer(self.attention, (None, None, dim), self.compute_dtype)
        self.feed_forward_norm = make_token_norm(self, "feed_forward_norm", dim)
        build_layer(self.feed_forward, (None, None, dim), self.compute_dtype)

    def make_cache(self, batch_size: int, max_length: int) -> Cache:
        """Returns an empty cache, for the `cache` of a call.

        Args:
            batch_size: integer. Number of sequences.
            max_length: integer. Number of tokens that fit into the cache, padding included.

        Returns:
            A dict of tensors: the cache of the attention layer.

        Raises:
            InvalidInputError: `max_length` is not a positive integer, or `batch_size` is negative.
        """
        cache: Cache = self.attention.make_cache(batch_size, max_length)
        return cache

    def call(
        self,
        inputs: Any,
        mask: Any = None,
        positions: Any = None,
        cache: Cache | None = None,
        cache_index: Any = None,
        attention_mask: Any = None,
        token_ids: Any = None,
        inputs_mask: Any = None,
        num_outputs: int | None = None,
    ) -> Any:
        mask = inputs_mask if mask is None else mask
        arguments = {
            "positions": positions,
            "cache": cache,
            "cache_index": cache_index,
            "attention_mask": attention_mask,
        }
        # Not every attention layer takes all of them.
        arguments = {name: value for name, value in arguments.items() if value is not None}
        arguments |= take_arguments(self.attention, num_outputs=num_outputs)
        outputs = call_layer(self.attention, self.attention_norm(inputs), mask, **arguments)
        if cache is not None:
            outputs, cache = outputs
        inputs, outputs, mask, token_ids = (
            take_last(tensor, num_outputs) for tensor in (inputs, outputs, mask, token_ids)
        )
        # An inner layer keeps its own dtype policy.
        hidden = inputs + ops.cast(outputs, self.compute_dtype)
        by_token = take_arguments(self.feed_forward, token_ids=token_ids)
        outputs = call_layer(self.feed_forward, self.feed_forward_norm(hidden), mask, **by_token)
        hidden = hidden + ops.cast(outputs, self.compute_dtype)
        if num_outputs is not None:
            set_mask(hidden, mask)
        return hidden if cache is None else (hidden, cache)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def compute_output_spec(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        arguments = inspect.signature(self.call).bind(inputs, *args, **kwargs).arguments
        shape = shape_of_last(inputs.shape, arguments.get("num_outputs"))
        outputs = keras.KerasTensor(shape, self.compute_dtype)
        cache = arguments.get("cache")
        if cache is None:
            return outputs
        return outputs, {
            name: keras.KerasTensor(tensor.shape, tensor.dtype) for name, tensor in cache.items()
        }

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "attention": serialize_layer(self.attention),
            "feed_forward": serialize_layer(self.feed_forward),
            "epsilon": self.epsilon,
        }
