"""The lightning indexer over compressed entries: which of them a token of CSA looks at.

Legend: B batch, L tokens of a call, J heads of the indexer, I size of one, N entries, k chosen
ones.
"""

from typing import Any

import keras
from keras import ops

from keras_deepseek.backend import current
from keras_deepseek.layers.attention.compressed.token_compressor import Rotate, TokenCompressor
from keras_deepseek.layers.attention.compressed.token_packing import PackedTokens
from keras_deepseek.layers.attention.head_projection import projection_arguments
from keras_deepseek.layers.attention.hidden_score import HIDDEN
from keras_deepseek.layers.attention.key_value_cache import Cache
from keras_deepseek.layers.double_precision import call_dense, promote_dtypes
from keras_deepseek.layers.input_check import Shape


class CompressedIndexer(keras.Layer):
    """Chooses for each token the entries of the highest scores.

    ```
    score[t, n] = sum over j of weight_j(x_t) * relu(query_j(t) . key(n)) * (I * J) ** -0.5
    ```

    where the keys are compressed as those of the attention are, by weights of their own, and the
    queries come from the same low-rank ones. Scores are in float32; of equal ones, the backend
    takes which it likes. A choice has no gradient, so the weights are not trainable unless their
    `trainable` is set for a loss of one's own.

    Args:
        num_heads: integer. J.
        head_dim: integer. I.
        top_k: integer. k.
        compress_rate: integer. Tokens in a window.
        epsilon: float. Added to the mean squares in the norm.
        kernel_initializer: `keras.initializers.Initializer`.
        **kwargs: Arguments of `keras.Layer`.
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
        self, tokens: PackedTokens, queries: Any, cache: Cache | None, rotate: Rotate
    ) -> tuple[Any, Cache]:
        """Returns the numbers of the chosen entries.

        Args:
            tokens: `PackedTokens` of a call.
            queries: Tensor of shape `(B, L, Q)`. The low-rank queries.
            cache: dict of earlier calls, or `None`.
            rotate: Function that rotates by positions.

        Returns:
            An integer tensor of shape `(B, L, k)`, with numbers of entries not to be seen where
            there are fewer, and a dict of what changes in the cache.
        """
        keys, updates = self.compressor.compress(tokens, cache, rotate, self.top_k)
        queries = rotate(self.query_up(queries), tokens.positions)
        dtype = promote_dtypes(self.compute_dtype, "float32")
        weights = ops.cast(call_dense(self.head_weight, tokens.inputs), dtype)
        weights = weights * (self.head_dim * self.num_heads) ** -0.5
        scores = ops.einsum("btji,bni->btjn", ops.cast(queries, dtype), ops.cast(keys, dtype))
        scores = ops.einsum("btjn,btj->btn", ops.relu(scores), weights)
        numbers = ops.arange(ops.shape(keys)[1], dtype="int32")
        is_seen = numbers < self.compressor.count_visible(tokens)[..., None]
        scores = ops.where(is_seen, scores, HIDDEN)
        return current().compute.top_k(scores, self.top_k)[1], updates
