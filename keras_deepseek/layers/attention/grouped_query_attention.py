"""Grouped-query attention of Llama and Qwen.

Shape suffixes: B batch, T tokens of a call, S cached and new tokens, N heads of queries, G heads of
keys and values, H size of a head.
"""

from typing import Any

import keras
from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.masks import set_mask
from keras_deepseek.checks import check_boolean, check_integer, check_number
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.attention.head_attention import attend_heads
from keras_deepseek.layers.attention.head_projection import projection_arguments
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
from keras_deepseek.layers.double_precision import call_dense
from keras_deepseek.layers.inner_layers import make_token_norm, serialize_layer
from keras_deepseek.layers.input_check import Shape, read_dim
from keras_deepseek.layers.last_tokens import start_of_last, take_last
from keras_deepseek.layers.masks import check_attention_mask
from keras_deepseek.layers.position.rotary_embedding import read_rotary


@keras.saving.register_keras_serializable("keras_deepseek")
class GroupedQueryAttention(SelfAttentionLayer):
    """Causal self-attention whose heads of queries share fewer heads of keys and values.

    Choose it for the layers of Llama and Qwen, and for any dense language model that decodes: the
    cache holds only `num_key_value_heads` heads. For tokens `t` and each head `h` of queries, with
    the head `g` of keys and values that it shares with its neighbours,

    ```
    q_h = rotary(norm(query_h(x_t)), t)          k_g = rotary(norm(key_g(x_s)), s)
    a = softmax over s <= t of q_h . k_g * head_dim ** -0.5
    output = output(concat over h of the sum over s of a_s value_g(x_s))
    ```

    The norms are there only with `use_query_key_norm`, as in Qwen3. With a `sliding_window`, a
    token sees the last so many tokens, itself included. `query`, `key`, `value` and `output` are
    `keras.layers.Dense` layers, whose outputs are sorted by head, so a LoRA of theirs is one of
    `peft`.

    A boolean mask (from Keras, or `mask`) hides padding from other tokens and is passed on. Outputs
    at padding have no meaning. A cache is a dict of `"key"`, `"value"` and the boolean `"mask"`,
    each of shape `(batch_size, max_length, ...)`.

    Args:
        num_heads: integer. Number of heads of queries.
        head_dim: integer. Size of a head.
        num_key_value_heads: integer or `None`. Number of heads of keys and values, which divides
            `num_heads`; `None` is as many. Defaults to `None`.
        rotary: `RotaryEmbedding`, its serialized form, or `None`. Rotates queries and keys by their
            positions. Defaults to `None`.
        use_bias: boolean. Whether `query`, `key` and `value` add a bias. Defaults to `False`.
        use_output_bias: boolean. Whether `output` adds a bias. Defaults to `False`.
        use_query_key_norm: boolean. Whether each head of queries and keys has an RMS norm, with a
            scale that all heads share. Defaults to `False`.
        sliding_window: integer or `None`. How many tokens a token sees; `None` is all. Defaults to
            `None`.
        dropout: float. Fraction of attention weights to drop in training. Defaults to `0.0`.
        epsilon: float. Added to the mean squares in the norms. Defaults to `1e-6`.
        kernel_initializer: string, dict or `keras.initializers.Initializer`. The initializer of all
            kernels. Defaults to `"glorot_uniform"`.
        seed: integer or `None`. Random seed of the dropout. Defaults to `None`.
        **kwargs: Arguments of `keras.Layer`, such as `name` and `dtype`.

    Raises:
        InvalidInputError: An argument is out of range, shapes do not match, or the cache is full.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.layers import GroupedQueryAttention, RotaryEmbedding
    >>> layer = GroupedQueryAttention(
    ...     4, head_dim=8, num_key_value_heads=2, rotary=RotaryEmbedding()
    ... )
    >>> prompt = np.ones((2, 5, 12), "float32")
    >>> cache = layer.make_cache(batch_size=2, max_length=10)
    >>> outputs, cache = layer(prompt, cache=cache, cache_index=0)
    >>> outputs, cache = layer(prompt[:, :1], cache=cache, cache_index=5)
    >>> tuple(outputs.shape)
    (2, 1, 12)

    Reference:

    - [GQA (Ainslie et al., 2023)](https://arxiv.org/abs/2305.13245)
    - [Qwen3 Technical Report (Qwen Team, 2025)](https://arxiv.org/abs/2505.09388)
    """

    def __init__(  # noqa: PLR0913 - a checkpoint has as many
        self,
        num_heads: int,
        *,
        head_dim: int,
        num_key_value_heads: int | None = None,
        rotary: Any = None,
        use_bias: bool = False,
        use_output_bias: bool = False,
        use_query_key_norm: bool = False,
        sliding_window: int | None = None,
        dropout: float = 0.0,
        epsilon: float = 1e-6,
        kernel_initializer: Any = "glorot_uniform",
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = check_integer("num_heads", num_heads)
        self.head_dim = check_integer("head_dim", head_dim)
        self.num_key_value_heads = check_integer(
            "num_key_value_heads", num_key_value_heads, default=self.num_heads
        )
        if self.num_heads % self.num_key_value_heads:
            raise InvalidInputError(
                f"`num_key_value_heads` must divide `num_heads`, received "
                f"{self.num_key_value_heads} and {self.num_heads}."
            )
        self.rotary = read_rotary(self, rotary, head_dim=self.head_dim)
        self.use_bias = check_boolean("use_bias", use_bias)
        self.use_output_bias = check_boolean("use_output_bias", use_output_bias)
        self.use_query_key_norm = check_boolean("use_query_key_norm", use_query_key_norm)
        self.sliding_window = sliding_window
        if sliding_window is not None:
            self.sliding_window = check_integer("sliding_window", sliding_window)
        self.dropout = check_number("dropout", dropout, minimum=0, below=1)
        self.epsilon = check_number("epsilon", epsilon, minimum=0)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.seed = seed
        self.use_causal_mask = True
        self.drop = keras.layers.Dropout(
            self.dropout, seed=seed, dtype=self.dtype_policy, name="drop"
        )
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        dim = read_dim(self, input_shape)
        query_dim = self.num_heads * self.head_dim
        key_dim = self.num_key_value_heads * self.head_dim
        self.query = self._make_dense("query", dim, query_dim, use_bias=self.use_bias)
        self.key = self._make_dense("key", dim, key_dim, use_bias=self.use_bias)
        self.value = self._make_dense("value", dim, key_dim, use_bias=self.use_bias)
        self.output_projection = self._make_dense(
            "output", query_dim, dim, use_bias=self.use_output_bias
        )
        if self.use_query_key_norm:
            self.query_norm = make_token_norm(self, "query_norm", self.head_dim)
            self.key_norm = make_token_norm(self, "key_norm", self.head_dim)
        if self.rotary is not None:
            self.rotary.build((None, None, self.head_dim))

    def _make_dense(self, name: str, dim: int, units: int, *, use_bias: bool) -> keras.layers.Dense:
        dense = keras.layers.Dense(units, use_bias=use_bias, **projection_arguments(self, name))
        dense.build((None, None, dim))
        return dense

    @property
    def _cache_entries(self) -> dict[str, tuple[int, ...]]:
        shape = (self.num_key_value_heads, self.head_dim)
        return {"key": shape, "value": shape}

    def call(
        self,
        inputs: Any,
        mask: Any = None,
        positions: Any = None,
        cache: Cache | None = None,
        cache_index: Any = None,
        training: bool | None = None,
        inputs_mask: Any = None,
        attention_mask: Any = None,
        num_outputs: int | None = None,
    ) -> Any:
        """Returns the outputs of attention, and with a cache also the new cache.

        Args:
            inputs: Floating-point tensor of shape `(batch_size, length, dim)`.
            mask: Boolean tensor of shape `(batch_size, length)`, false at padding, or `None` to use
                the mask of `inputs`. Defaults to `None`.
            positions: Integer tensor of shape `(batch_size, length)`, or `None` to count from 0, or
                from `cache_index`. Defaults to `None`.
            cache: dict of tensors from `make_cache` or an earlier call, or `None`. Defaults to
                `None`.
            cache_index: integer, or integer tensor, scalar or of shape `(batch_size,)`. The cache
                slot of the call's first token, of all sequences or of each. Defaults to `None`.
            training: boolean or `None`. Whether to drop attention weights. `None` takes the value
                of the surrounding call. Defaults to `None`.
            inputs_mask: The mask of `inputs`, which Keras sets if the call has several tensors.
                `mask` takes precedence. Defaults to `None`.
            attention_mask: Boolean tensor that broadcasts to `(batch_size, length, key_length)`, or
                `None`. True where a token may attend to a key, such as within one document. It is
                combined with the other masks. With a cache, keys are its slots. Defaults to `None`.
            num_outputs: integer or `None`. The number of last tokens to return outputs for. The
                other tokens are still attended to and cached. `None` returns all outputs. Defaults
                to `None`.

        Returns:
            A tensor of the shape of `inputs`, or for `num_outputs` tokens; with a cache, a pair of
            that tensor and the new cache.
        """
        mask = check_call(self, inputs, (mask, inputs_mask), cache, cache_index)
        check_room(self, inputs, positions, cache_index)
        mask_of_outputs = take_last(mask, num_outputs)
        start = 0 if cache is None else cache_index
        key_BTGH = self._split_heads(self.key, inputs)
        value_BTGH = self._split_heads(self.value, inputs)
        if self.use_query_key_norm:
            key_BTGH = self.key_norm(key_BTGH)
        keys = {"key": self._rotate(key_BTGH, positions, start), "value": value_BTGH}
        query_start = start_of_last(inputs, start, num_outputs)
        query_BTNH = self._split_heads(self.query, take_last(inputs, num_outputs))
        if self.use_query_key_norm:
            query_BTNH = self.query_norm(query_BTNH)
        query_BTNH = self._rotate(query_BTNH, take_last(positions, num_outputs), query_start)
        if cache is not None:
            cache = append_to_cache(cache, cache_index, keys, mask)
            # A call that fills the whole cache needs no keys but its own.
            if inputs.shape[1] is None or inputs.shape[1] != cache["mask"].shape[1]:
                keys, mask = cache, cache["mask"]
        check_attention_mask(attention_mask, inputs, keys["key"])
        visibility = {
            "key_mask": mask,
            "start_index": query_start,
            "attention_mask": take_last(attention_mask, num_outputs),
        }
        heads_BTNH = self._attend(query_BTNH, keys["key"], keys["value"], visibility, training)
        merged = (*ops.shape(heads_BTNH)[:2], self.num_heads * self.head_dim)
        outputs = call_dense(self.output_projection, ops.reshape(heads_BTNH, merged))
        if num_outputs is not None:
            set_mask(outputs, mask_of_outputs)
        return outputs if cache is None else (outputs, cache)

    def _split_heads(self, dense: keras.layers.Dense, inputs: Any) -> Any:
        """Projects tokens (BTD) to heads (BTNH)."""
        outputs = call_dense(dense, inputs)
        heads = (dense.units // self.head_dim, self.head_dim)
        return ops.reshape(outputs, (*ops.shape(outputs)[:2], *heads))

    def _attend(
        self,
        query_BTNH: Any,
        key_BSGH: Any,
        value_BSGH: Any,
        visibility: dict[str, Any],
        training: bool | None,
    ) -> Any:
        """Returns the attention outputs of each head (BTNH).

        `visibility` are keywords of `make_attention_mask`.
        """
        query_BTNH = query_BTNH * self.head_dim**-0.5
        query_length, key_length = query_BTNH.shape[1], key_BSGH.shape[1]
        is_causal = query_length == key_length
        mask_BTS = make_attention_mask(
            ops.shape(query_BTNH)[1],
            ops.shape(key_BSGH)[1],
            use_causal_mask=True,
            sliding_window=self.sliding_window,
            **visibility,
        )
        can_be_fused = is_causal and not (training and self.dropout)
        can_be_fused = can_be_fused and self.compute_dtype != "float64"
        if can_be_fused and backend.current().compute.fuses_attention(query_BTNH):
            repeats = self.num_heads // self.num_key_value_heads
            hides = (visibility["key_mask"], visibility["attention_mask"], self.sliding_window)
            is_only_causal = all(rule is None for rule in hides)
            # Padding sees itself: without any key its gradient might not be finite.
            mask_BTS = ops.logical_or(mask_BTS, ops.eye(ops.shape(mask_BTS)[1], dtype="bool"))
            return ops.dot_product_attention(
                query_BTNH,
                ops.repeat(key_BSGH, repeats, axis=2),
                ops.repeat(value_BSGH, repeats, axis=2),
                mask=None if is_only_causal else ops.expand_dims(mask_BTS, 1),
                scale=1.0,
                is_causal=is_only_causal,
            )
        return attend_heads(
            query_BTNH,
            key_BSGH,
            value_BSGH,
            mask_BTS,
            lambda weights: self.drop(weights, training=training),
            is_causal=is_causal,
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "num_key_value_heads": self.num_key_value_heads,
            "rotary": None if self.rotary is None else serialize_layer(self.rotary),
            "use_bias": self.use_bias,
            "use_output_bias": self.use_output_bias,
            "use_query_key_norm": self.use_query_key_norm,
            "sliding_window": self.sliding_window,
            "dropout": self.dropout,
            "epsilon": self.epsilon,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "seed": self.seed,
        }
