"""Heavily compressed attention of DeepSeek-V4: each token attends to all earlier windows."""

from typing import Any

import keras

from keras_deepseek.checks import check_integer
from keras_deepseek.layers.attention.compressed.token_compressor import TokenCompressor
from keras_deepseek.layers.attention.compressed.token_packing import PackedTokens
from keras_deepseek.layers.attention.key_value_cache import Cache
from keras_deepseek.layers.attention.sink_attention import FarKeys
from keras_deepseek.layers.attention.sliding_window_attention import SlidingWindowAttention
from keras_deepseek.layers.input_check import Shape


@keras.saving.register_keras_serializable("keras_deepseek")
class HeavilyCompressedAttention(SlidingWindowAttention):
    """`SlidingWindowAttention` that also attends to one entry per `compress_rate` earlier tokens.

    Choose it for a layer that should see all of a long sequence, with a 128th of the keys. A token
    attends to its window and, in the same softmax, to every entry whose last token does not come
    after it:

    ```
    gate = gate(x) + position_bias                   of token j in the window of entry n
    entry_n = rms_norm(sum over j of softmax over j(gate_j) * value(x_j))     number by number
    k_n = rotary(entry_n, position of the window's first token)
    ```

    The windows of entries do not overlap. Tokens of the last window, while it is not full, are seen
    only through the sliding window. Windows are counted over real tokens, so padding is in no
    window. Given positions must be consecutive within a window.

    In addition to the cache of `SlidingWindowAttention`, a cache holds the entries,
    `"compressed_key"`, with `max_length // compress_rate + 1` slots, and the tokens of a window
    that is not full yet, `"recent_value"` and `"recent_gate"`.

    Weights of a checkpoint: `compressor.kv_proj`, `.gate_proj`, `.position_bias` and `.kv_norm` are
    `value`, `gate`, `position_bias` and `norm` of `compressor`; the others are as in
    `SlidingWindowAttention`.

    Args:
        num_heads: integer. Number of attention heads.
        compress_rate: integer. The number of tokens in a window, and so per entry. Defaults to
            `128`.
        **kwargs: Arguments of `SlidingWindowAttention`. `head_dim`, `rope_head_dim`,
            `query_lora_rank`, `num_output_groups`, `output_lora_rank` and `rotary` are required.

    Raises:
        InvalidInputError: An argument is out of range, shapes do not match, or the cache is full.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.layers import HeavilyCompressedAttention, RotaryEmbedding
    >>> layer = HeavilyCompressedAttention(
    ...     4, compress_rate=3, sliding_window=2, head_dim=8, rope_head_dim=4, query_lora_rank=8,
    ...     num_output_groups=2, output_lora_rank=8,
    ...     rotary=RotaryEmbedding(160000.0, use_interleaved_pairs=True),
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
        compress_rate: int = 128,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_heads, **kwargs)
        self.compress_rate = check_integer("compress_rate", compress_rate)
        self.compressor = TokenCompressor(
            self.head_dim,
            self.compress_rate,
            use_overlap=False,
            epsilon=self.epsilon,
            kernel_initializer=self.kernel_initializer,
            dtype=self.dtype_policy,
            trainable=self.trainable,
            name="compressor",
        )

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.compressor.build(input_shape)

    def _state_shapes(self, max_length: int) -> dict[str, tuple[int, ...]]:
        return {**super()._state_shapes(max_length), **self.compressor.cache_shapes(max_length)}

    def _find_far(
        self, tokens: PackedTokens, low_rank_BTQ: Any, cache: Cache | None
    ) -> tuple[FarKeys | None, Cache]:
        keys_BEH, updates = self.compressor.compress(tokens, cache, self._rotate_last)
        return FarKeys(keys_BEH, self.compressor.count_visible(tokens)), updates

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "compress_rate": self.compress_rate}
