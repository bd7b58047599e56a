"""Lightning indexer that chooses compressed entries for `CompressedSparseAttention`.

Shape suffixes: B batch, T tokens of a call, E entries, K chosen entries, N heads of the indexer, H
size of a head, Q size of the low-rank queries.
"""

from functools import partial
from typing import Any

import keras
from keras import ops

from keras_deepseek.backend import current
from keras_deepseek.layers.attention.compressed.token_compressor import Rotate, TokenCompressor
from keras_deepseek.layers.attention.compressed.token_packing import PackedTokens
from keras_deepseek.layers.attention.head_projection import project_tokens, projection_arguments
from keras_deepseek.layers.attention.hidden_score import HIDDEN
from keras_deepseek.layers.attention.key_value_cache import Cache
from keras_deepseek.layers.double_precision import call_dense, promote_dtypes
from keras_deepseek.layers.input_check import Shape
from keras_deepseek.layers.opaque_operation import call_opaque


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
