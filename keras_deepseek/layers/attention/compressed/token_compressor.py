"""Compression of windows of tokens to single entries, the far keys and values of DeepSeek-V4.

Shape suffixes: B batch, T tokens of a call, S tokens of a call after those of a cache, E entries, W
windows that a call may complete, M tokens in a window (the rate), D size of an entry, F size of
values and gates, which is D, or 2 D with overlap.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_deepseek.backend.call_context import known_size
from keras_deepseek.layers.attention.compressed.token_packing import (
    PackedTokens,
    count_missing,
    join_recent,
    take_rows,
)
from keras_deepseek.layers.attention.head_projection import projection_arguments
from keras_deepseek.layers.attention.key_value_cache import Cache
from keras_deepseek.layers.double_precision import promote_dtypes
from keras_deepseek.layers.inner_layers import make_token_norm
from keras_deepseek.layers.input_check import Shape
from keras_deepseek.layers.masks import HIDDEN

Rotate = Callable[[Any, Any], Any]


class TokenCompressor(keras.Layer):
    """A layer that compresses each full window of `compress_rate` tokens to one entry.

    An entry is the sum of the window's values, weighted number by number by a softmax of gates over
    the window. It is then normed, and rotated by the position of the window's first token. With
    `use_overlap` there are two series of values and gates: an entry is made from its window by one
    and from the window before it by the other.

    In a cache it keeps the entries, one slot a window and a spare slot for windows that are not
    full, and the values and gates of the tokens that the next entry may need. The names of these
    cache entries begin with `prefix`.
    """

    def __init__(
        self,
        entry_dim: int,
        compress_rate: int,
        *,
        use_overlap: bool,
        epsilon: float,
        kernel_initializer: Any,
        prefix: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.entry_dim = entry_dim
        self.compress_rate = compress_rate
        self.use_overlap = use_overlap
        self.epsilon = epsilon
        self.kernel_initializer = kernel_initializer
        self.prefix = prefix
        self._width = entry_dim * (1 + use_overlap)
        self._num_recent = compress_rate * (1 + use_overlap)

    def build(self, input_shape: Shape) -> None:
        self.value, self.gate = (
            keras.layers.Dense(self._width, use_bias=False, **projection_arguments(self, name))
            for name in ("value", "gate")
        )
        for dense in (self.value, self.gate):
            dense.build(input_shape)
        self.position_bias = self.add_weight(
            name="position_bias",
            shape=(self.compress_rate, self._width),
            initializer="zeros",
            autocast=False,
        )
        self.norm = make_token_norm(self, "norm", self.entry_dim)

    def cache_shapes(self, max_length: int) -> dict[str, tuple[int, int]]:
        """Returns the shape of one sequence's cache tensors, by name, for `max_length` tokens."""
        return {
            f"{self.prefix}compressed_key": (max_length // self.compress_rate + 1, self.entry_dim),
            f"{self.prefix}recent_value": (self._num_recent, self._width),
            f"{self.prefix}recent_gate": (self._num_recent, self._width),
        }

    def compress(
        self, tokens: PackedTokens, cache: Cache | None, rotate: Rotate, min_entries: int = 1
    ) -> tuple[Any, Cache]:
        """Returns the compressed entries of all tokens so far (BED), and the changed cache tensors.

        Entry e stands for the tokens from `e * M` on. No token before the last of them may see it.
        `rotate` rotates entries by positions. If the length is unknown and there is no cache, there
        are at least `min_entries`; some then stand for no token.
        """
        values_BSF, gates_BSF = self.value(tokens.inputs), self.gate(tokens.inputs)
        rate, updates = self.compress_rate, {}
        if cache is None:
            num_windows = (tokens.length + rate - 1) // rate
            if known_size(num_windows) is None:
                num_windows = num_windows + count_missing(num_windows, min_entries)
        else:
            # The most windows that the call can complete, wherever in a window it begins.
            num_windows = (tokens.length - 1) // rate + 1
            values_BSF, updates[f"{self.prefix}recent_value"] = join_recent(
                cache[f"{self.prefix}recent_value"], values_BSF, tokens
            )
            gates_BSF, updates[f"{self.prefix}recent_gate"] = join_recent(
                cache[f"{self.prefix}recent_gate"], gates_BSF, tokens
            )
        windows_BW = tokens.num_before // rate + ops.arange(num_windows, dtype="int32")
        entries_BWD = self._pool(values_BSF, gates_BSF, windows_BW, tokens)
        # Only the last token of a window is sure to be in this call, so its position is read.
        last_BW = ops.clip((windows_BW + 1) * rate - 1 - tokens.num_before, 0, tokens.length - 1)
        entries_BWD = rotate(entries_BWD, take_rows(tokens.positions, last_BW) - (rate - 1))
        if cache is None:
            return entries_BWD, updates
        name = f"{self.prefix}compressed_key"
        updates[name] = self._store(cache[name], entries_BWD, windows_BW, tokens)
        return updates[name], updates

    def count_visible(self, tokens: PackedTokens) -> Any:
        """Returns the number of compressed entries that each token may attend to (BT)."""
        return (tokens.ranks + 1) // self.compress_rate

    def _pool(self, values_BSF: Any, gates_BSF: Any, windows_BW: Any, tokens: PackedTokens) -> Any:
        """Returns the compressed entries of windows (BWD), before their rotation by position."""
        rate, dim = self.compress_rate, self.entry_dim
        batch_size, num_tokens = ops.shape(values_BSF)[:2]
        num_windows = ops.shape(windows_BW)[1]
        # With overlap, one more window: the one before the first.
        num_rows = num_windows + self.use_overlap
        first = num_tokens - tokens.length - tokens.num_before % rate - rate * self.use_overlap
        rows = first + ops.arange(num_rows * rate, dtype="int32")
        rows = ops.clip(rows, 0, num_tokens - 1)
        shape = (batch_size, num_rows, rate, self._width)
        values_BWMF = ops.reshape(take_rows(values_BSF, rows), shape)
        gates_BWMF = ops.cast(ops.reshape(take_rows(gates_BSF, rows), shape), self._score_dtype())
        gates_BWMF = gates_BWMF + ops.cast(self.position_bias, gates_BWMF.dtype)
        if self.use_overlap:
            # Now M is twice the rate, and F is D.
            is_first = ops.equal(windows_BW, 0)[..., None, None]
            earlier = ops.where(is_first, HIDDEN, gates_BWMF[:, :-1, :, :dim])
            gates_BWMF = ops.concatenate([earlier, gates_BWMF[:, 1:, :, dim:]], axis=2)
            values_BWMF = ops.concatenate(
                [values_BWMF[:, :-1, :, :dim], values_BWMF[:, 1:, :, dim:]], axis=2
            )
        if gates_BWMF.shape[2] == 1:  # It has all the weight; Keras's softmax would warn.
            return self.norm(values_BWMF[:, :, 0])
        weights_BWMF = ops.cast(ops.softmax(gates_BWMF, axis=2), values_BWMF.dtype)
        return self.norm(ops.sum(values_BWMF * weights_BWMF, axis=2))

    def _score_dtype(self) -> str:
        return promote_dtypes(self.compute_dtype, "float32")

    def _store(
        self, cached_BED: Any, entries_BWD: Any, windows_BW: Any, tokens: PackedTokens
    ) -> Any:
        """Returns the cached entries (BED) after writing the entries of newly full windows."""
        batch_size, num_windows, dim = ops.shape(entries_BWD)
        spare = cached_BED.shape[1] - 1  # The slot for windows that are not full; no token sees it.
        num_full = (tokens.num_before + tokens.num_real) // self.compress_rate
        slots_BW = ops.where(windows_BW < num_full, ops.minimum(windows_BW, spare), spare)
        slots_BW = ops.broadcast_to(slots_BW, (batch_size, num_windows))
        sequences_BW = ops.reshape(ops.arange(batch_size, dtype="int32"), (batch_size, 1))
        sequences_BW = ops.broadcast_to(sequences_BW, (batch_size, num_windows))
        indices = ops.reshape(
            ops.stack([sequences_BW, slots_BW], -1), (batch_size * num_windows, 2)
        )
        updates = ops.reshape(
            ops.cast(entries_BWD, cached_BED.dtype), (batch_size * num_windows, dim)
        )
        return ops.scatter_update(cached_BED, indices, updates)
