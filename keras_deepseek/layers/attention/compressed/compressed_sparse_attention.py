"""Compressed sparse attention of DeepSeek-V4: each token attends to a few compressed entries.

Shape suffixes: B batch, T tokens of a call, E entries, K chosen entries, N heads of the indexer, H
size of a head, Q size of the low-rank queries.
"""

from functools import partial
from typing import Any

import keras
from keras import ops

from keras_deepseek.backend import current
from keras_deepseek.backend.call_context import known_size
from keras_deepseek.checks import check_boolean, check_integer
from keras_deepseek.layers.attention.compressed.lightning_indexer import (
    IndexerTraining,
    check_index_head_dim,
)
from keras_deepseek.layers.attention.compressed.token_compressor import Rotate, TokenCompressor
from keras_deepseek.layers.attention.compressed.token_packing import PackedTokens
from keras_deepseek.layers.attention.head_projection import project_tokens, projection_arguments
from keras_deepseek.layers.attention.key_value_cache import Cache
from keras_deepseek.layers.attention.sink_attention import FarKeys
from keras_deepseek.layers.attention.sliding_window_attention import SlidingWindowAttention
from keras_deepseek.layers.double_precision import call_dense, promote_dtypes
from keras_deepseek.layers.input_check import Shape
from keras_deepseek.layers.masks import HIDDEN
from keras_deepseek.layers.opaque_operation import call_opaque


@keras.saving.register_keras_serializable("keras_deepseek")
class CompressedSparseAttention(IndexerTraining, SlidingWindowAttention):
    """`SlidingWindowAttention` that also attends to chosen entries, each made of a few tokens.

    Choose it for long sequences in which a token should look up details far away. There is one
    entry for every `compress_rate` tokens. A lightning indexer scores the entries. A token attends
    to the `index_top_k` entries with the highest scores, in one softmax with its window. An entry
    is made from its own window of tokens and the window before it,

    ```
    gate = gate(x) + position_bias              gates and values each have two series, a and b
    entry_n = rms_norm(sum over j of softmax over j(gate_j) * value_j)        number by number
              where j goes over a of window n - 1 and over b of window n
    k_n = rotary(entry_n, position of the first token of window n)
    score[t, n] = sum over i of index_weight_i(x_t) * relu(index_query_i(t) . index_k_n)
    ```

    The keys of the indexer are made in the same way, of size `index_head_dim` and with separate
    weights; its queries are made from the compressed queries. A token never sees an entry whose
    last token comes after it. With at most `index_top_k` entries a token sees all, and nothing is
    scored. Otherwise the scores, of few small heads, are the only part whose cost grows with the
    square of the length. Windows are counted over real tokens, so padding is in no window. Given
    positions must be consecutive within a window.

    The choice has no gradient, so `indexer` is not trainable by default. Set `train_indexer`, or
    later `indexer.trainable`, to train it by your own loss; both are saved.

    In addition to the cache of `SlidingWindowAttention`, a cache holds the entries,
    `"compressed_key"`, with `max_length // compress_rate + 1` slots, and the tokens that the next
    entry may need, `"recent_value"` and `"recent_gate"`. If there may be more than `index_top_k`
    entries, it holds the same for the indexer, under names that begin with `"index_"`.

    Weights of a checkpoint: `compressor.kv_proj`, `.gate_proj`, `.position_bias` and `.kv_norm` are
    `value`, `gate`, `position_bias` and `norm` of `compressor`, and in the same way those of
    `compressor.indexer` are in `indexer/compressor`; its `q_b_proj` is `indexer/query_up` and its
    `scorer.weights_proj` `indexer/head_weight`. The others are as in `SlidingWindowAttention`.

    Args:
        num_heads: integer. Number of attention heads.
        index_num_heads: integer. Number of heads of the indexer.
        index_head_dim: integer. Size of a head of the indexer, at least `rope_head_dim`.
        index_top_k: integer. How many entries a token attends to. Defaults to `512`.
        compress_rate: integer. The number of tokens in a window, and so per entry. Defaults to `4`.
        train_indexer: boolean. If true, the weights of the indexer are trainable. Defaults to
            `False`.
        **kwargs: Arguments of `SlidingWindowAttention`. `head_dim`, `rope_head_dim`,
            `query_lora_rank`, `num_output_groups`, `output_lora_rank` and `rotary` are required.

    Raises:
        InvalidInputError: An argument is out of range, shapes do not match, or the cache is full.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.layers import CompressedSparseAttention, RotaryEmbedding
    >>> layer = CompressedSparseAttention(
    ...     4, compress_rate=2, index_num_heads=2, index_head_dim=4, index_top_k=3,
    ...     sliding_window=2, head_dim=8, rope_head_dim=4, query_lora_rank=8, num_output_groups=2,
    ...     output_lora_rank=8, rotary=RotaryEmbedding(160000.0, use_interleaved_pairs=True),
    ... )
    >>> tuple(layer(np.ones((2, 10, 12), "float32")).shape)
    (2, 10, 12)

    Reference:

    - [DeepSeek-V4 (DeepSeek-AI, 2026)](https://huggingface.co/deepseek-ai/DeepSeek-V4-Flash-Base)
    """

    def __init__(
        self,
        num_heads: int,
        *,
        index_num_heads: int,
        index_head_dim: int,
        index_top_k: int = 512,
        compress_rate: int = 4,
        train_indexer: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_heads, **kwargs)
        self.index_num_heads = check_integer("index_num_heads", index_num_heads)
        self.index_head_dim = check_index_head_dim(index_head_dim, self.rope_head_dim)
        self.index_top_k = check_integer("index_top_k", index_top_k)
        self.compress_rate = check_integer("compress_rate", compress_rate)
        common = {
            "compress_rate": self.compress_rate,
            "epsilon": self.epsilon,
            "kernel_initializer": self.kernel_initializer,
            "dtype": self.dtype_policy,
            "trainable": self.trainable,
        }
        self.compressor = TokenCompressor(
            self.head_dim, use_overlap=True, name="compressor", **common
        )
        self.indexer = CompressedIndexer(
            self.index_num_heads,
            self.index_head_dim,
            self.index_top_k,
            name="indexer",
            **common,
        )
        self._set_indexer_training(check_boolean("train_indexer", train_indexer))

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.compressor.build(input_shape)
        self.indexer.build(input_shape, self.query_lora_rank)

    def _state_shapes(self, max_length: int) -> dict[str, tuple[int, ...]]:
        shapes = {**super()._state_shapes(max_length), **self.compressor.cache_shapes(max_length)}
        if self._has_choice(max_length):
            shapes.update(self.indexer.compressor.cache_shapes(max_length))
        return shapes

    def _has_choice(self, length: int) -> bool:
        """Returns true if a sequence may have more compressed entries than a query attends to."""
        return length // self.compress_rate > self.index_top_k

    def _find_far(
        self, tokens: PackedTokens, low_rank_BTQ: Any, cache: Cache | None
    ) -> tuple[FarKeys | None, Cache]:
        length = known_size((tokens.inputs if cache is None else cache["mask"]).shape[1])
        keys_BEH, updates = self.compressor.compress(
            tokens, cache, self._rotate_last, self.index_top_k
        )
        chosen_BTK, num_visible_BT = None, self.compressor.count_visible(tokens)
        if length is None or self._has_choice(length):
            chosen_BTK, index_updates = self.indexer.choose(
                tokens, low_rank_BTQ, cache, self._rotate_last
            )
            updates = {**updates, **index_updates}
        return FarKeys(keys_BEH, num_visible_BT, chosen_BTK), updates

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "index_num_heads": self.index_num_heads,
            "index_head_dim": self.index_head_dim,
            "index_top_k": self.index_top_k,
            "compress_rate": self.compress_rate,
        }


class CompressedIndexer(keras.Layer):
    """A layer that chooses the entries with the highest scores for each token.

    ```
    score[t, e] = sum over n of weight_n(x_t) * relu(query_n(t) . key(e)) * (H * N) ** -0.5
    ```

    Keys are compressed like those of the attention layer, by separate weights; queries are made
    from the same low-rank queries. Scores are in float32; the backend decides between equal scores.
    The choice has no gradient, so the weights are not trainable unless the user sets `trainable`
    for a loss on the scores.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        top_k: int,
        *,
        compress_rate: int,
        epsilon: float,
        kernel_initializer: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.top_k = top_k
        self.kernel_initializer = kernel_initializer
        self.compressor = TokenCompressor(
            head_dim,
            compress_rate,
            use_overlap=True,
            epsilon=epsilon,
            kernel_initializer=kernel_initializer,
            prefix="index_",
            dtype=self.dtype_policy,
            trainable=self.trainable,
            name="compressor",
        )

    def build(self, input_shape: Shape, query_dim: int) -> None:
        self.compressor.build(input_shape)
        self.query_up = keras.layers.EinsumDense(
            "btd,dji->btji",
            (None, self.num_heads, self.head_dim),
            **projection_arguments(self, "query_up"),
        )
        self.head_weight = keras.layers.Dense(
            self.num_heads, use_bias=False, **projection_arguments(self, "head_weight")
        )
        self.query_up.build((None, None, query_dim))
        self.head_weight.build(input_shape)

    def choose(
        self, tokens: PackedTokens, low_rank_BTQ: Any, cache: Cache | None, rotate: Rotate
    ) -> tuple[Any, Cache]:
        """Returns the indices of the chosen entries (BTK), and the changed cache tensors.

        If a token may see fewer than K entries, the rest are entries that it must not see.
        """
        keys_BEH, updates = self.compressor.compress(tokens, cache, rotate, self.top_k)
        queries_BTNH = rotate(project_tokens(self.query_up, low_rank_BTQ), tokens.positions)
        dtype = promote_dtypes(self.compute_dtype, "float32")
        weights_BTN = ops.cast(call_dense(self.head_weight, tokens.inputs), dtype)
        weights_BTN = weights_BTN * (self.head_dim * self.num_heads) ** -0.5
        products_BTNE = ops.einsum(
            "btnh,beh->btne", ops.cast(queries_BTNH, dtype), ops.cast(keys_BEH, dtype)
        )
        scores_BTE = ops.einsum("btne,btn->bte", ops.relu(products_BTNE), weights_BTN)
        numbers_E = ops.arange(ops.shape(keys_BEH)[1], dtype="int32")
        is_visible_BTE = numbers_E < self.compressor.count_visible(tokens)[..., None]
        scores_BTE = ops.where(is_visible_BTE, scores_BTE, HIDDEN)
        top_k = partial(current().compute.top_k, k=self.top_k)
        return call_opaque(top_k, scores_BTE)[1], updates
