"""A decoder layer of DeepSeek-V4: attention and experts, connected by residual streams."""

from typing import Any

import keras

from keras_deepseek.checks import check_number
from keras_deepseek.layers import ManifoldConstrainedHyperConnections
from keras_deepseek.layers.initializers import clone_initializer
from keras_deepseek.layers.inner_layers import make_token_norm, revive_layer, serialize_layer
from keras_deepseek.layers.input_check import FloatingInputLayer, Shape
from keras_deepseek.layers.residual.stream_weights import check_streams


@keras.saving.register_keras_serializable("keras_deepseek")
class DeepSeekV4DecoderLayer(FloatingInputLayer):
    """One layer of DeepSeek-V4: attention, then a mixture of experts, on residual streams.

    Choose it to build your own model of such layers, as `DeepSeekV4Backbone` does. For the streams
    `x` of a token,

    ```
    x = hyper_connections(x, attention(rms_norm(.)))
    x = hyper_connections(x, feed_forward(rms_norm(.)))
    ```

    where each of the two `ManifoldConstrainedHyperConnections` reads one vector from the streams,
    writes one into them, and mixes them. A boolean mask hides padding. The cache is the cache of
    the attention.

    Args:
        attention: `keras.Layer` or its serialized config. A `SlidingWindowAttention` or one of the
            compressed attentions.
        feed_forward: `keras.Layer` or its serialized config. A `DeepSeekMoE`.
        sinkhorn_iterations: integer. Number of Sinkhorn iterations that normalize the mixing of the
            streams. Defaults to `20`.
        stream_epsilon: float. Added to the weights of the streams. Defaults to `1e-6`.
        epsilon: float. Added to the mean squares in the norms. Defaults to `1e-6`.
        kernel_initializer: string, dict or `keras.initializers.Initializer`. For the kernels that
            mix the streams. Defaults to `"glorot_uniform"`.
        **kwargs: Arguments of `keras.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: Floating-point tensor of shape `(batch_size, length, num_streams, dim)`.
        token_ids: Integer tensor of shape `(batch_size, length)`, or `None`. A `HashRouter` needs
            them.
        mask: Boolean tensor of shape `(batch_size, length)`, false for padding, or `None` for the
            mask that `inputs` carry.
        positions: Integer tensor of shape `(batch_size, length)`, or `None` to count the tokens
            without padding.
        cache: dict of tensors from `make_cache` or an earlier call, or `None`.
        cache_index: integer or integer scalar tensor. The slot of the first token in the cache.
        training: boolean. Given to the attention and the experts, as Keras does.
        inputs_mask: As `mask`. Keras fills it in from `inputs` if there are further tensors.

    Returns:
        A tensor of the shape of `inputs`. With a cache, a pair of it and the new cache.

    Raises:
        InvalidInputError: An argument is not a layer, the inputs have another dtype or shape, or
            the attention or the experts raise it.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.layers import (
    ...     DeepSeekMoE, ExpertRouter, RotaryEmbedding, SlidingWindowAttention
    ... )
    >>> from keras_deepseek.models import DeepSeekV4DecoderLayer
    >>> attention = SlidingWindowAttention(
    ...     4, head_dim=8, rope_head_dim=4, query_lora_rank=8, num_output_groups=2,
    ...     output_lora_rank=8, sliding_window=4,
    ...     rotary=RotaryEmbedding(use_interleaved_pairs=True),
    ... )
    >>> experts = DeepSeekMoE(ExpertRouter(4, 2, scoring="sqrt_softplus"), 16)
    >>> layer = DeepSeekV4DecoderLayer(attention, experts)
    >>> tuple(layer(np.ones((2, 5, 4, 12), "float32")).shape)
    (2, 5, 4, 12)

    Reference:

    - [DeepSeek-V4 (DeepSeek-AI, 2026)](https://huggingface.co/deepseek-ai/DeepSeek-V4-Flash-Base)
    """

    def __init__(
        self,
        attention: Any,
        feed_forward: Any,
        *,
        sinkhorn_iterations: int = 20,
        stream_epsilon: float = 1e-6,
        epsilon: float = 1e-6,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.attention = revive_layer("attention", attention)
        self.feed_forward = revive_layer("feed_forward", feed_forward)
        self.epsilon = check_number("epsilon", epsilon, minimum=0)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.attention_streams, self.feed_forward_streams = (
            ManifoldConstrainedHyperConnections(
                layer,
                sinkhorn_iterations=sinkhorn_iterations,
                stream_epsilon=stream_epsilon,
                epsilon=epsilon,
                kernel_initializer=clone_initializer(self.kernel_initializer),
                dtype=self.dtype_policy,
                name=name,
            )
            for layer, name in (
                (self.attention, "attention_streams"),
                (self.feed_forward, "feed_forward_streams"),
            )
        )
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        _, dim = check_streams(self.name, input_shape)
        tokens = input_shape[:-2]
        # Both are built here by shape: a hash router can't be built by a call without token ids.
        for layer in (self.attention, self.feed_forward):
            if not layer.built:
                layer.build((*tokens, dim))
        self.attention_streams.build(input_shape)
        self.feed_forward_streams.build(input_shape)
        self.attention_norm = make_token_norm(self, "attention_norm", dim)
        self.feed_forward_norm = make_token_norm(self, "feed_forward_norm", dim)

    def make_cache(self, batch_size: int, max_length: int) -> Any:
        """Returns an empty cache of the attention, for the `cache` of a call.

        Args:
            batch_size: integer. Number of sequences.
            max_length: integer. Number of tokens that fit into the cache, padding included.
        """
        return self.attention.make_cache(batch_size, max_length)

    def call(
        self,
        inputs: Any,
        token_ids: Any = None,
        mask: Any = None,
        positions: Any = None,
        cache: Any = None,
        cache_index: Any = None,
        training: bool | None = None,
        inputs_mask: Any = None,
    ) -> Any:
        mask = inputs_mask if mask is None else mask
        read, post, comb = self.attention_streams.collapse(inputs)
        outputs = self.attention(
            self.attention_norm(read),
            mask=mask,
            positions=positions,
            cache=cache,
            cache_index=cache_index,
        )
        outputs, cache = outputs if cache is not None else (outputs, None)
        streams = self.attention_streams.merge(outputs, inputs, post, comb)
        read, post, comb = self.feed_forward_streams.collapse(streams)
        outputs = self.feed_forward(self.feed_forward_norm(read), token_ids=token_ids, mask=mask)
        streams = self.feed_forward_streams.merge(outputs, streams, post, comb)
        return streams if cache is None else (streams, cache)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "attention": serialize_layer(self.attention),
            "feed_forward": serialize_layer(self.feed_forward),
            "sinkhorn_iterations": self.attention_streams.sinkhorn_iterations,
            "stream_epsilon": self.attention_streams.stream_epsilon,
            "epsilon": self.epsilon,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
