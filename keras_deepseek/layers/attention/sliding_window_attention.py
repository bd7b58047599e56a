"""Sliding window attention of DeepSeek-V4, and the base of its two compressed attentions.

Shape suffixes: B batch, T tokens of a call, S cached and new tokens, Q size of the low-rank
queries, N heads, H size of a head, G groups of heads.
"""

from typing import Any

import keras
from keras import ops

from keras_deepseek.checks import check_integer, check_number
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.attention.compressed.token_packing import (
    PackedTokens,
    count_tokens,
    join_recent,
    pack_tokens,
)
from keras_deepseek.layers.attention.head_projection import project_tokens, projection_arguments
from keras_deepseek.layers.attention.key_value_cache import (
    Cache,
    append_to_cache,
    check_states,
    continue_cache,
)
from keras_deepseek.layers.attention.self_attention_layer import (
    SelfAttentionLayer,
    check_call,
    check_room,
)
from keras_deepseek.layers.attention.sink_attention import FarKeys, NearKeys, sink_attention
from keras_deepseek.layers.initializers import stack_initializer
from keras_deepseek.layers.inner_layers import make_token_norm, serialize_layer
from keras_deepseek.layers.input_check import Shape, read_dim
from keras_deepseek.layers.masks import complete_mask
from keras_deepseek.layers.position.rotary_embedding import check_positions, read_rotary

_FIXED_SCALINGS = ("default", "linear", "llama3", "yarn")
"""Scalings whose angle of a position does not depend on the length of the sequence."""


@keras.saving.register_keras_serializable("keras_deepseek")
class SlidingWindowAttention(SelfAttentionLayer):
    """Causal self-attention with sinks over the last few tokens; all heads share one key a token.

    Choose it for the layers of a DeepSeek-V4 with the type `sliding_attention`, which see only the
    window. `CompressedSparseAttention` and `HeavilyCompressedAttention` do the same and also see
    entries for far tokens. For tokens `t` and each head `h`,

    ```
    q_h = rotary(rms(query_up_h(rms_norm(query_down(x_t)))), t)      the inner norm has a scale
    k_s = rotary(rms_norm(key_value(x_s)), s)                        one key for all heads
    a = softmax over t - sliding_window < s <= t of q_h . k_s * head_dim ** -0.5, and sink_h
    o_h = rotary(sum over s of a_s k_s, -t)                          the key is the value, too
    output = output(concat over groups g of output_down_g(the o_h of the group))
    ```

    A sink is a score without a key; it takes weight away from the keys. `rotary` rotates the last
    `rope_head_dim` numbers. The rotation by `-t` leaves only the distance in a value. The window is
    computed in blocks, so the cost grows with the length, not its square.

    A boolean mask (from Keras, or `mask`) hides padding and is passed on; outputs at padding have
    no meaning. Padding may stand anywhere and is not counted: a window covers the last
    `sliding_window` real tokens, and without `positions` a token's position is the number of real
    tokens before it.

    A cache is a dict of `"mask"`, one slot a token, and `"recent_key"`, which holds only the last
    `sliding_window` tokens. It can only continue: `cache_index` must be the number of slots that
    earlier calls filled, or 0 to start again; skipped slots count as padding. A smaller index
    raises an error in eager mode on a CPU, where the check is free; elsewhere the outputs are
    wrong.

    Weights of a checkpoint, apart from their layout: `q_a_proj` is `query_down`, `q_b_proj`
    `query_up`, `kv_proj` `key_value`, `o_a_proj` `output_down`, `o_b_proj` `output`.

    Args:
        num_heads: integer. Number of attention heads.
        head_dim: integer. Size of a head of queries, and of the one key.
        rope_head_dim: integer. Size of the last part of a head, which is rotated by position. It
            must be even.
        query_lora_rank: integer. Size of the compressed queries.
        num_output_groups: integer. The number of groups in which the heads are projected. It must
            divide `num_heads`.
        output_lora_rank: integer. Size of a group's projection.
        sliding_window: integer. How many tokens a token attends to, itself included. Defaults to
            `128`.
        rotary: `RotaryEmbedding` or its serialized form. Rotates the parts of size
            `rope_head_dim`. Its `scaling` must be of a kind whose angles don't depend on the
            length. DeepSeek-V4's checkpoints need `use_interleaved_pairs=True`, and for `"yarn"` an
            `attention_factor` of 1.
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
    >>> from keras_deepseek.layers import RotaryEmbedding, SlidingWindowAttention
    >>> layer = SlidingWindowAttention(
    ...     4, head_dim=8, rope_head_dim=4, query_lora_rank=8, num_output_groups=2,
    ...     output_lora_rank=8, sliding_window=4,
    ...     rotary=RotaryEmbedding(use_interleaved_pairs=True),
    ... )
    >>> prompt = np.ones((2, 5, 12), "float32")
    >>> cache = layer.make_cache(batch_size=2, max_length=10)
    >>> outputs, cache = layer(prompt, cache=cache, cache_index=0)
    >>> outputs, cache = layer(prompt[:, :1], cache=cache, cache_index=5)
    >>> tuple(outputs.shape)
    (2, 1, 12)

    Reference:

    - [DeepSeek-V4 (DeepSeek-AI, 2026)](https://huggingface.co/deepseek-ai/DeepSeek-V4-Flash-Base)
    - [Efficient Streaming Language Models with Attention Sinks (Xiao et al., 2023)](
      https://arxiv.org/abs/2309.17453)
    """

    def __init__(  # noqa: PLR0913 - a checkpoint has as many
        self,
        num_heads: int,
        *,
        head_dim: int,
        rope_head_dim: int,
        query_lora_rank: int,
        num_output_groups: int,
        output_lora_rank: int,
        sliding_window: int = 128,
        rotary: Any,
        dropout: float = 0.0,
        epsilon: float = 1e-6,
        kernel_initializer: Any = "glorot_uniform",
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = check_integer("num_heads", num_heads)
        self.head_dim = check_integer("head_dim", head_dim)
        self.rope_head_dim = check_integer("rope_head_dim", rope_head_dim)
        self.query_lora_rank = check_integer("query_lora_rank", query_lora_rank)
        self.num_output_groups = check_integer("num_output_groups", num_output_groups)
        self.output_lora_rank = check_integer("output_lora_rank", output_lora_rank)
        self.sliding_window = check_integer("sliding_window", sliding_window)
        if self.rope_head_dim % 2 or self.rope_head_dim > self.head_dim:
            raise InvalidInputError(
                f"`rope_head_dim` must be even and at most `head_dim`, {head_dim}; received "
                f"{rope_head_dim}."
            )
        if self.num_heads % self.num_output_groups:
            raise InvalidInputError(
                f"`num_output_groups` must divide `num_heads`, received {num_output_groups} and "
                f"{num_heads}."
            )
        self.dropout = check_number("dropout", dropout, minimum=0, below=1)
        self.epsilon = check_number("epsilon", epsilon, minimum=0)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.seed = seed
        self.use_causal_mask = True
        self.rotary = read_rotary(self, rotary, is_required=True)
        _check_scaling(self.rotary.scaling)
        self.drop = keras.layers.Dropout(
            self.dropout, seed=seed, dtype=self.dtype_policy, name="drop"
        )
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        dim = read_dim(self, input_shape)
        heads, head_dim = self.num_heads, self.head_dim
        groups, rank = self.num_output_groups, self.output_lora_rank
        self.query_down = self._make_dense(
            "query_down", "btd,dq->btq", (dim,), self.query_lora_rank
        )
        self.query_norm = make_token_norm(self, "query_norm", self.query_lora_rank)
        self.query_up = self._make_dense(
            "query_up", "btq,qhk->bthk", (self.query_lora_rank,), heads, head_dim
        )
        self.key_value = self._make_dense("key_value", "btd,dk->btk", (dim,), head_dim)
        self.key_value_norm = make_token_norm(self, "key_value_norm", head_dim)
        self.sinks = self.add_weight(
            name="sinks", shape=(heads,), initializer="zeros", autocast=False
        )
        self.output_down = self._make_dense(
            "output_down", "btgi,gir->btgr", (groups, heads * head_dim // groups), groups, rank
        )
        self.output_projection = self._make_dense("output", "btgr,grd->btd", (groups, rank), dim)
        self.rotary.build((None, None, self.rope_head_dim))

    def _make_dense(
        self, name: str, equation: str, input_sizes: tuple[int, ...], *sizes: int
    ) -> keras.layers.EinsumDense:
        arguments = projection_arguments(self, name)
        if name == "output_down":  # It stacks one kernel per group.
            initializer = stack_initializer(self.kernel_initializer, sizes[0])
            arguments["kernel_initializer"] = initializer
        dense = keras.layers.EinsumDense(equation, (None, *sizes), **arguments)
        dense.supports_masking = True  # Correct here: each token is transformed by itself.
        dense.build((None, None, *input_sizes))
        return dense

    def _state_shapes(self, max_length: int) -> dict[str, tuple[int, ...]]:
        return {"recent_key": (self.sliding_window, self.head_dim)}

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
        if positions is not None:
            check_positions(ops.convert_to_tensor(positions), inputs)
        num_before = None
        if cache is not None:
            check_states(cache, inputs.shape[0], self._state_shapes)
            cache = continue_cache(cache, cache_index)
            num_before = ops.expand_dims(count_tokens(cache["mask"], cache_index), 1)
        if inputs.shape[1] == 0:
            outputs = ops.cast(inputs, self.compute_dtype)
            return outputs if cache is None else (outputs, cache)

        tokens = pack_tokens(inputs, mask, positions, num_before)
        outputs, updates = self._attend(tokens, cache, training)
        outputs = tokens.unpack(outputs)
        if cache is None:
            return outputs
        mask = complete_mask(mask, inputs)
        return outputs, append_to_cache(cache, cache_index, {}, mask, states=updates)

    def _attend(
        self, tokens: PackedTokens, cache: Cache | None, training: bool | None
    ) -> tuple[Any, Cache]:
        """Returns the outputs (BTD) of tokens whose padding was moved to the end.

        Also returns the cache's updated tensors, except its mask.
        """
        updates = {}
        low_rank_BTQ = self.query_norm(project_tokens(self.query_down, tokens.inputs))
        query_BTNH = project_tokens(self.query_up, low_rank_BTQ)
        query_BTNH = ops.rms_normalization(query_BTNH, epsilon=self.epsilon)
        query_BTNH = query_BTNH * self.head_dim**-0.5
        keys_BSH = self.key_value_norm(project_tokens(self.key_value, tokens.inputs))
        query_BTNH, keys_BSH = (
            self._rotate_last(x, tokens.positions) for x in (query_BTNH, keys_BSH)
        )
        if cache is not None:
            keys_BSH, updates["recent_key"] = join_recent(cache["recent_key"], keys_BSH, tokens)
        far, far_updates = self._find_far(tokens, low_rank_BTQ, cache)
        heads_BTNH = sink_attention(
            query_BTNH,
            NearKeys(keys_BSH, tokens.num_before, self.sliding_window),
            far,
            self.sinks,
            lambda weights: self.drop(weights, training=training),
        )
        # The keys are the values too, so these are rotated. Rotated back by the query's position,
        # the outputs depend only on the distance to each key.
        heads_BTNH = self._rotate_last(heads_BTNH, -tokens.positions)
        batch_size, length = ops.shape(heads_BTNH)[:2]
        groups = self.num_output_groups
        grouped_BTGx = ops.reshape(
            heads_BTNH, (batch_size, length, groups, self.num_heads * self.head_dim // groups)
        )
        low_rank_BTGR = project_tokens(self.output_down, grouped_BTGx)
        outputs_BTD = project_tokens(self.output_projection, low_rank_BTGR)
        return outputs_BTD, {**updates, **far_updates}

    def _find_far(
        self, tokens: PackedTokens, low_rank_BTQ: Any, cache: Cache | None
    ) -> tuple[FarKeys | None, Cache]:
        """Returns no far keys and no cache updates.

        Subclasses override it to add compressed keys beyond the sliding window.
        """
        return None, {}

    def _rotate_last(self, x: Any, positions: Any) -> Any:
        first = x.shape[-1] - self.rope_head_dim
        rotated = self.rotary(x[..., first:], positions=positions)
        return ops.concatenate([x[..., :first], rotated], axis=-1) if first else rotated

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "rope_head_dim": self.rope_head_dim,
            "query_lora_rank": self.query_lora_rank,
            "num_output_groups": self.num_output_groups,
            "output_lora_rank": self.output_lora_rank,
            "sliding_window": self.sliding_window,
            "rotary": serialize_layer(self.rotary),
            "dropout": self.dropout,
            "epsilon": self.epsilon,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "seed": self.seed,
        }


def _check_scaling(scaling: dict[str, Any] | None) -> None:
    kind = "default" if scaling is None else scaling["rope_type"]
    if kind not in _FIXED_SCALINGS:
        raise InvalidInputError(
            f"The `scaling` of `rotary` must be one of {', '.join(_FIXED_SCALINGS)}, received "
            f"{kind!r}. Its "
            f"angles change with the length, so earlier cached entries would not match later ones."
        )
