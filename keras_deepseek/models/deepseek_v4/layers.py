"""The layers of DeepSeek-V4: its decoder layer, and its prediction of further tokens."""

from typing import Any

import keras
from keras import ops

from keras_deepseek.checks import check_number
from keras_deepseek.layers import (
    ManifoldConstrainedHyperConnections,
    MultiTokenPrediction,
    ResidualStreamCollapse,
)
from keras_deepseek.layers.initializers import clone_initializer
from keras_deepseek.layers.inner_layers import (
    build_layer,
    make_token_norm,
    revive_layer,
    serialize_layer,
)
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
        cache_index: integer, or integer tensor, scalar or of shape `(batch_size,)`. The slot of the
            first token in the cache, of all sequences or of each.
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


@keras.saving.register_keras_serializable("keras_deepseek")
class DeepSeekV4TokenPrediction(MultiTokenPrediction):
    """A `MultiTokenPrediction` that works on the residual streams of DeepSeek-V4.

    Choose it for a head of your own on a `DeepSeekV4Backbone`. `DeepSeekV4CausalLM` uses it if its
    config has `num_prediction_layers`. For a sequence `t` and the streams `h[0]` after the last
    layer,

    ```
    x = hidden_projection_k(rms_norm(h[k - 1][i])) + embedding_projection_k(rms_norm(embedding))
    h[k] = block_k(x)                                       embedding of t[i + k], in every stream
    logits_k[i] = output_head(rms_norm(collapse_k(h[k][i])))          predicts t[i + k + 1]
    ```

    In a checkpoint, `hidden_norm_1` is `hnorm`, `embedding_norm_1` is `enorm`,
    `hidden_projection_1` is `h_proj`, `embedding_projection_1` is `e_proj`, `collapse_1` is
    `hc_head`, and `output_norm_1` is `norm`.

    Args:
        block: `DeepSeekV4DecoderLayer`, or its serialized config.
        token_embedding: `keras.layers.ReversibleEmbedding`, or its serialized config.
        output_head: `keras.Layer`, or its serialized config. From hidden states to logits.
        stream_epsilon: float. Added to the weights of the streams. Defaults to `1e-6`.
        **kwargs: Arguments of `MultiTokenPrediction`, such as `depth` and `loss_weight`.

    Call arguments:
        inputs: Floating-point tensor of shape `(batch_size, length, num_streams, dim)`.
        token_ids: Integer tensor of shape `(batch_size, length)`.
        mask: Boolean tensor of shape `(batch_size, length)`, false for padding, or `None` for the
            mask that `inputs` carry.
        training: boolean. Whether to add the loss.
        inputs_mask: As `mask`. Keras fills it in from `inputs` if there are further tensors.

    Returns:
        A list of `depth` tensors: logits of shape `(batch_size, length, vocabulary_size)`, or
            hidden states of shape `(batch_size, length, dim)`.

    Raises:
        InvalidInputError: As for `MultiTokenPrediction`, or the inputs are not residual streams.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.models import DeepSeekV4CausalLM, DeepSeekV4Config
    >>> config = DeepSeekV4Config.from_preset(
    ...     "tiny", layer_types=("sliding_attention",), router_types=("hash",),
    ...     num_prediction_layers=1,
    ... )
    >>> layer = DeepSeekV4CausalLM(config).multi_token_prediction
    >>> streams, tokens = np.ones((1, 5, 4, 64), "float32"), np.ones((1, 5), "int32")
    >>> [tuple(logits.shape) for logits in layer(streams, tokens)]
    [(1, 5, 256)]

    Reference:

    - [DeepSeek-V4 (DeepSeek-AI, 2026)](https://huggingface.co/deepseek-ai/DeepSeek-V4-Flash-Base)
    """

    def __init__(
        self,
        block: Any,
        token_embedding: Any,
        output_head: Any,
        *,
        stream_epsilon: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(block, token_embedding, output_head, **{"use_output_norm": True, **kwargs})
        self.stream_epsilon = check_number("stream_epsilon", stream_epsilon, minimum=0)

    def build(self, input_shape: Shape) -> None:
        _, dim = check_streams(self.name, input_shape)
        build_layer(self.token_embedding, (None, None), "int32")
        self._check_embedding((*input_shape[:2], dim))
        build_layer(self.output_head, (None, None, dim), self.compute_dtype)
        self.hidden_norms, self.embedding_norms, self.output_norms = [], [], []
        self.hidden_projections, self.embedding_projections, self.collapses = [], [], []
        for index, block in enumerate(self.blocks, 1):
            self.hidden_norms.append(make_token_norm(self, f"hidden_norm_{index}", dim))
            self.embedding_norms.append(make_token_norm(self, f"embedding_norm_{index}", dim))
            self.output_norms.append(make_token_norm(self, f"output_norm_{index}", dim))
            self.hidden_projections.append(self._make_dense(f"hidden_projection_{index}", dim))
            self.embedding_projections.append(
                self._make_dense(f"embedding_projection_{index}", dim)
            )
            collapse = ResidualStreamCollapse(
                stream_epsilon=self.stream_epsilon,
                epsilon=self.epsilon,
                kernel_initializer=clone_initializer(self.kernel_initializer),
                dtype=self.dtype_policy,
                name=f"collapse_{index}",
            )
            collapse.build(input_shape)
            self.collapses.append(collapse)
            block.build(input_shape)

    def _make_dense(self, name: str, dim: int) -> keras.layers.Dense:
        dense = keras.layers.Dense(
            dim,
            use_bias=False,
            kernel_initializer=clone_initializer(self.kernel_initializer),
            dtype=self.dtype_policy,
            name=name,
        )
        dense.build((None, None, dim))
        return dense

    def _check_tokens(self, inputs: Any, token_ids: Any, mask: Any) -> None:
        super()._check_tokens(inputs[:, :, 0], token_ids, mask)

    def call_module(
        self, index: int, inputs: Any, token_ids: Any, mask: Any = None, **kwargs: Any
    ) -> Any:
        embedded = ops.cast(self.token_embedding(token_ids), inputs.dtype)
        read = self.hidden_projections[index](self.hidden_norms[index](inputs))
        written = self.embedding_projections[index](self.embedding_norms[index](embedded))
        streams = read + ops.expand_dims(written, -2)
        return self.blocks[index](streams, token_ids=token_ids, mask=mask, **kwargs)

    def _norm_output(self, index: int, hidden: Any) -> Any:
        return self.output_norms[index](self.collapses[index](hidden))

    def compute_output_spec(
        self, inputs: Any, token_ids: Any, *args: Any, **kwargs: Any
    ) -> list[Any]:
        read = keras.KerasTensor((*inputs.shape[:2], inputs.shape[-1]), self.compute_dtype)
        return super().compute_output_spec(read, token_ids, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "stream_epsilon": self.stream_epsilon}
