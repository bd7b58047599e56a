"""Multi-head latent attention of DeepSeek-V2 and V3.

Shape suffixes are those of `latent_attention.py`, and Q: size of the input of the queries.
"""

from typing import Any

import keras
from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend.call_context import known_size
from keras_deepseek.backend.keras_private.masks import set_mask
from keras_deepseek.backend.keras_private.quantization import can_read_kernel, read_kernel
from keras_deepseek.checks import check_boolean, check_integer, check_number
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.attention.head_projection import project_tokens, projection_arguments
from keras_deepseek.layers.attention.key_value_cache import (
    Cache,
    append_to_cache,
    make_attention_mask,
)
from keras_deepseek.layers.attention.latent_attention import (
    LatentKeys,
    LatentQueries,
    attend_absorbed,
    attend_fused,
    attend_naive,
    is_absorbed_cheaper,
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
from keras_deepseek.layers.position.rotary_scaling import compute_score_factor


@keras.saving.register_keras_serializable("keras_deepseek")
class MultiHeadLatentAttention(SelfAttentionLayer):
    """Self-attention that makes the keys and values of all heads from one small vector a token.

    Choose it for a language model that decodes: the cache holds only that vector and one rotary
    key, which all heads share. For a token `x` and each head `h`,

    ```
    c = rms_norm(key_value_down(x))               compressed, `key_value_lora_rank` numbers
    k = rotary(key_rope(x))                       shared, `rope_head_dim` numbers
    key_h = [key_up_h(c), k]                      value_h = value_up_h(c)
    query_h = [query_nope_h, rotary(query_rope_h)] of query_up(rms_norm(query_down(x)))
    output = sum over h of output_h(softmax(scale * query_h . key_h) value_h)
    scale = (nope_head_dim + rope_head_dim) ** -0.5, times YaRN's mscale squared
    ```

    There are two ways to compute it. Naive attention expands `c` to keys and values of each head.
    Absorbed attention applies `key_up` to the queries and `value_up` to the weighted sums, so it
    expands nothing: far less work for few queries and a long cache. The layer takes the way with
    fewer multiplications, depending only on the shapes.

    A boolean mask (from Keras, or `mask`) hides padding from other tokens and is passed on. Outputs
    at padding have no meaning. With `use_causal_mask` a token attends only to itself and earlier
    tokens. A cache is a dict of `"latent"`, `"rotary_key"` and the boolean `"mask"`, each of shape
    `(batch_size, max_length, ...)`. A token takes `key_value_lora_rank + rope_head_dim` numbers in
    the layer's compute dtype.

    The weights of a DeepSeek checkpoint, apart from their layout, are here:

    - `q_a_proj`: `query_down`
    - `q_b_proj` or `q_proj`: `query_up`
    - `kv_a_proj_with_mqa`: `key_value_down` and `key_rope`
    - `kv_b_proj`: `key_up` and `value_up`
    - `o_proj`: `output`

    Args:
        num_heads: integer. Number of attention heads.
        nope_head_dim: integer. Size of the part of a query and key without a position.
        rope_head_dim: integer. Size of the part that is rotated by position. It must be even.
        value_head_dim: integer. Size of a value.
        key_value_lora_rank: integer. Size of the compressed keys and values.
        query_lora_rank: integer or `None`. Size of the compressed queries; `None` projects queries
            directly. Defaults to `None`.
        rotary: `RotaryEmbedding` or its serialized form. Rotates the parts of size
            `rope_head_dim`. DeepSeek's checkpoints need `use_interleaved_pairs=True`.
        use_causal_mask: boolean. If true, a token attends only to itself and earlier tokens.
            Defaults to `False`.
        use_bias: boolean. If true, `query_down`, `key_value_down`, `key_rope` and `output` add a
            bias. Defaults to `False`.
        dropout: float. Fraction of attention weights to drop in training. Defaults to `0.0`.
        epsilon: float. Added to the mean squares in the norms. Defaults to `1e-6`.
        kernel_initializer: string, dict or `keras.initializers.Initializer`. The initializer of all
            kernels. Defaults to `"glorot_uniform"`.
        seed: integer or `None`. Random seed of the dropout. Defaults to `None`.
        **kwargs: Arguments of `keras.Layer`, such as `name` and `dtype`.

    Raises:
        InvalidInputError: An argument is out of range, shapes do not match, the cache is full, or
            the layer has no causal mask and gets a cache.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.layers import MultiHeadLatentAttention, RotaryEmbedding
    >>> layer = MultiHeadLatentAttention(
    ...     4, nope_head_dim=8, rope_head_dim=4, value_head_dim=8, key_value_lora_rank=16,
    ...     rotary=RotaryEmbedding(use_interleaved_pairs=True), use_causal_mask=True,
    ... )
    >>> prompt = np.ones((2, 5, 32), "float32")
    >>> tuple(layer(prompt).shape)
    (2, 5, 32)
    >>> cache = layer.make_cache(batch_size=2, max_length=10)
    >>> outputs, cache = layer(prompt, cache=cache, cache_index=0)
    >>> outputs, cache = layer(prompt[:, :1], cache=cache, cache_index=5)
    >>> tuple(outputs.shape)
    (2, 1, 32)

    Reference:

    - [DeepSeek-V2 (DeepSeek-AI, 2024)](https://arxiv.org/abs/2405.04434)
    - [DeepSeek-V3 Technical Report (DeepSeek-AI, 2024)](https://arxiv.org/abs/2412.19437)
    """

    def __init__(  # noqa: PLR0913 - a checkpoint has as many
        self,
        num_heads: int,
        *,
        nope_head_dim: int,
        rope_head_dim: int,
        value_head_dim: int,
        key_value_lora_rank: int,
        query_lora_rank: int | None = None,
        rotary: Any,
        use_causal_mask: bool = False,
        use_bias: bool = False,
        dropout: float = 0.0,
        epsilon: float = 1e-6,
        kernel_initializer: Any = "glorot_uniform",
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = check_integer("num_heads", num_heads)
        self.nope_head_dim = check_integer("nope_head_dim", nope_head_dim)
        self.rope_head_dim = check_integer("rope_head_dim", rope_head_dim)
        self.value_head_dim = check_integer("value_head_dim", value_head_dim)
        self.key_value_lora_rank = check_integer("key_value_lora_rank", key_value_lora_rank)
        self.query_lora_rank = query_lora_rank
        if query_lora_rank is not None:
            self.query_lora_rank = check_integer("query_lora_rank", query_lora_rank)
        if self.rope_head_dim % 2:
            raise InvalidInputError(
                f"`rope_head_dim` must be even, because entries are rotated in pairs; received "
                f"{self.rope_head_dim}."
            )
        self.use_causal_mask = check_boolean("use_causal_mask", use_causal_mask)
        self.use_bias = check_boolean("use_bias", use_bias)
        self.dropout = check_number("dropout", dropout, minimum=0, below=1)
        self.epsilon = check_number("epsilon", epsilon, minimum=0)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.seed = seed
        self.rotary = read_rotary(self, rotary, is_required=True)
        self.drop = keras.layers.Dropout(
            self.dropout, seed=seed, dtype=self.dtype_policy, name="drop"
        )
        self._scale = (self.nope_head_dim + self.rope_head_dim) ** -0.5
        self._scale *= compute_score_factor(self.rotary.scaling)
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        dim = read_dim(self, input_shape)
        heads, rank = self.num_heads, self.key_value_lora_rank
        query_dim = dim
        if self.query_lora_rank is not None:
            query_dim = self.query_lora_rank
            self.query_down = self._make_dense("query_down", dim, query_dim)
            self.query_norm = make_token_norm(self, "query_norm", query_dim)
        self.query_up = self._make_up(
            "query_up", query_dim, self.nope_head_dim + self.rope_head_dim
        )
        self.key_value_down = self._make_dense("key_value_down", dim, rank)
        self.key_value_norm = make_token_norm(self, "key_value_norm", rank)
        self.key_rope = self._make_dense("key_rope", dim, self.rope_head_dim)
        self.key_up = self._make_up("key_up", rank, self.nope_head_dim)
        self.value_up = self._make_up("value_up", rank, self.value_head_dim)
        self.output_projection = keras.layers.EinsumDense(
            "bthv,hvd->btd",
            (None, dim),
            bias_axes="d" if self.use_bias else None,
            **projection_arguments(self, "output"),
        )
        self.output_projection.build((None, None, heads, self.value_head_dim))
        self.rotary.build((None, None, self.rope_head_dim))

    def _make_dense(self, name: str, dim: int, units: int) -> keras.layers.Dense:
        arguments = projection_arguments(self, name)
        dense = keras.layers.Dense(units, use_bias=self.use_bias, **arguments)
        dense.build((None, None, dim))
        return dense

    def _make_up(self, name: str, dim: int, head_dim: int) -> keras.layers.EinsumDense:
        dense = keras.layers.EinsumDense(
            "btd,dhn->bthn", (None, self.num_heads, head_dim), **projection_arguments(self, name)
        )
        dense.supports_masking = True  # Correct here: each token is transformed by itself.
        dense.build((None, None, dim))
        return dense

    @property
    def _cache_entries(self) -> dict[str, tuple[int, ...]]:
        return {"latent": (self.key_value_lora_rank,), "rotary_key": (self.rope_head_dim,)}

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
            training: boolean or `None`. Whether to drop attention weights, and to add the loss of
                an indexer. `None` takes the value of the surrounding call. Defaults to `None`.
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
        query_input_BTQ = inputs
        if self.query_lora_rank is not None:
            query_input_BTQ = self.query_norm(call_dense(self.query_down, inputs))
        position_arguments = {"positions": positions, "start_index": start}
        queries, keys = self._project(inputs, query_input_BTQ, position_arguments, num_outputs)
        if cache is not None:
            cache = append_to_cache(cache, cache_index, keys, mask)
            # A call that fills the whole cache needs no keys but its own.
            if inputs.shape[1] is not None and inputs.shape[1] == cache["mask"].shape[1]:
                keys["mask"] = cache["mask"]  # Tells `_attend` that there is a cache.
            else:
                keys, mask = cache, cache["mask"]
        check_attention_mask(attention_mask, inputs, keys["latent"])
        visibility = {
            "key_mask": mask,
            "start_index": start_of_last(inputs, start, num_outputs),
            "use_causal_mask": self.use_causal_mask,
            "attention_mask": take_last(attention_mask, num_outputs),
        }
        heads_BTNV = self._attend(queries, keys, visibility, training)
        outputs = project_tokens(self.output_projection, heads_BTNV)
        if num_outputs is not None:
            set_mask(outputs, mask_of_outputs)
        return outputs if cache is None else (outputs, cache)

    def _project(
        self,
        inputs: Any,
        query_input_BTQ: Any,
        position_arguments: dict[str, Any],
        num_outputs: int | None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Projects the inputs to the parts of queries and of keys, as two dicts of tensors by name.

        Queries are `nope` (BTNP) and `rope` (BTNR), scaled; keys are `latent` (BSC) and
        `rotary_key` (BSR). The cache keeps the keys that `_cache_entries` names.
        """
        query_input_BTQ = take_last(query_input_BTQ, num_outputs)
        query_BTNH = project_tokens(self.query_up, query_input_BTQ) * self._scale
        query_positions = {
            "positions": take_last(position_arguments["positions"], num_outputs),
            "start_index": start_of_last(inputs, position_arguments["start_index"], num_outputs),
        }
        return {
            "nope": query_BTNH[..., : self.nope_head_dim],
            "rope": self.rotary(query_BTNH[..., self.nope_head_dim :], **query_positions),
        }, {
            "latent": self.key_value_norm(call_dense(self.key_value_down, inputs)),
            "rotary_key": self.rotary(call_dense(self.key_rope, inputs), **position_arguments),
        }

    def _attend(
        self,
        queries: dict[str, Any],
        keys: dict[str, Any],
        visibility: dict[str, Any],
        training: bool | None,
    ) -> Any:
        """Returns the attention outputs of each head (BTNV), in the way with the least work.

        `queries` and `keys` are those of `_project`. With a cache, `keys` also has a `"mask"`.
        `visibility` are the keywords of `make_attention_mask`.
        """

        def drop(weights: Any) -> Any:
            return self.drop(weights, training=training)

        parts = (
            LatentQueries(queries["nope"], queries["rope"]),
            LatentKeys(keys["latent"], keys["rotary_key"]),
        )
        query_length, key_length = queries["nope"].shape[1], keys["latent"].shape[1]
        mask_BTS = make_attention_mask(
            ops.shape(queries["nope"])[1], ops.shape(keys["latent"])[1], **visibility
        )
        ups = (self.key_up, self.value_up)
        absorbs = is_absorbed_cheaper(
            known_size(query_length),
            known_size(key_length),
            self.nope_head_dim + self.value_head_dim,
            self.key_value_lora_rank,
        )
        if absorbs and all(map(can_read_kernel, ups)):
            kernels = [read_kernel(up, self.compute_dtype) for up in ups]
            return attend_absorbed(*parts, mask_BTS, kernels, drop)
        is_causal = visibility["use_causal_mask"] and query_length == key_length
        is_prompt = is_causal and "mask" in keys
        drops_weights = training and self.dropout
        can_be_fused = is_prompt and not drops_weights and self.compute_dtype != "float64"
        if can_be_fused and backend.current().compute.fuses_attention(queries["nope"]):
            masks = (visibility["key_mask"], visibility["attention_mask"])
            is_only_causal = all(mask is None for mask in masks)
            return attend_fused(*parts, None if is_only_causal else mask_BTS, ups)
        return attend_naive(*parts, mask_BTS, ups, drop, is_causal=is_causal)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "nope_head_dim": self.nope_head_dim,
            "rope_head_dim": self.rope_head_dim,
            "value_head_dim": self.value_head_dim,
            "key_value_lora_rank": self.key_value_lora_rank,
            "query_lora_rank": self.query_lora_rank,
            "rotary": serialize_layer(self.rotary),
            "use_causal_mask": self.use_causal_mask,
            "use_bias": self.use_bias,
            "dropout": self.dropout,
            "epsilon": self.epsilon,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "seed": self.seed,
        }
