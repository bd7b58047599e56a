"""Windows of tokens pooled to one entry each: the keys and values that are far away.

Legend: B batch, L tokens of a call, R recent tokens that a cache keeps, m the rate, K windows that
a call may complete, D size of an entry, N entries.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_deepseek.layers.attention.compressed.token_packing import (
    PackedTokens,
    join_recent,
    take_rows,
)
from keras_deepseek.layers.attention.head_projection import projection_arguments
from keras_deepseek.layers.attention.hidden_score import HIDDEN
from keras_deepseek.layers.attention.key_value_cache import Cache
from keras_deepseek.layers.double_precision import promote_dtypes
from keras_deepseek.layers.input_check import Shape
from keras_deepseek.layers.token_norm import make_token_norm

Rotate = Callable[[Any, Any], Any]


class TokenCompressor(keras.Layer):
    """Compresses each full window of `compress_rate` tokens to one entry.

    An entry is a sum of the window's values, weighted one by one of their numbers by a softmax of
    gates over the window, normed, and rotated by the position of the window's first token. With
    `use_overlap` there are two series of values and gates, and an entry is made from the window by
    one and from the window before it by the other.

    It keeps in a cache the entries, in slots of their windows with one more for what is not full
    yet, and values and gates of the tokens that the next entry may need.

    Args:
        entry_dim: integer. Size of an entry.
        compress_rate: integer. Tokens in a window.
        use_overlap: boolean. Whether an entry sees the window before its own.
        epsilon: float. Added to the mean squares in the norm.
        kernel_initializer: `keras.initializers.Initializer`.
        prefix: string. What the names of the entries in the cache begin with. Defaults to `""`.
        **kwargs: Arguments of `keras.Layer`.
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
        """Returns the slots and the size of each entry of a cache.

        Args:
            max_length: integer. The tokens that the cache has room for.
        """
        return {
            f"{self.prefix}compressed_key": (max_length // self.compress_rate + 1, self.entry_dim),
            f"{self.prefix}recent_value": (self._num_recent, self._width),
            f"{self.prefix}recent_gate": (self._num_recent, self._width),
        }

    def compress(
        self, tokens: PackedTokens, cache: Cache | None, rotate: Rotate, min_entries: int = 1
    ) -> tuple[Any, Cache]:
        """Returns the entries of all tokens so far.

        Args:
            tokens: `PackedTokens` of a call.
            cache: dict of earlier calls, or `None`.
            rotate: Function that rotates entries by positions of shape `(B, K)`.
            min_entries: integer. How many there are at least where the length is not known and
                there is no cache, some of them of no token. Defaults to `1`.

        Returns:
            A tensor of shape `(B, N, D)`, of which entry n stands for the tokens from `n * m` on
            and must not be seen before the last of them, and a dict of what changes in the cache.
        """
        values, gates = self.value(tokens.inputs), self.gate(tokens.inputs)
        rate, updates = self.compress_rate, {}
        if cache is None:
            num_windows = (tokens.length + rate - 1) // rate
            if not isinstance(num_windows, int):
                num_windows = ops.maximum(num_windows, min_entries)
        else:
            num_windows = (tokens.length - 1) // rate + 1
            values, updates[f"{self.prefix}recent_value"] = join_recent(
                cache[f"{self.prefix}recent_value"], values, tokens
            )
            gates, updates[f"{self.prefix}recent_gate"] = join_recent(
                cache[f"{self.prefix}recent_gate"], gates, tokens
            )
        windows = tokens.num_before // rate + ops.arange(num_windows, dtype="int32")
        entries = self._pool(values, gates, windows, tokens)
        # The last token of a window is one of this call's, whenever the first one came.
        last = ops.clip((windows + 1) * rate - 1 - tokens.num_before, 0, tokens.length - 1)
        entries = rotate(entries, take_rows(tokens.positions, last) - (rate - 1))
        if cache is not None:
            name = f"{self.prefix}compressed_key"
            entries = updates[name] = self._store(cache[name], entries, windows, tokens)
        return entries, updates

    def count_visible(self, tokens: PackedTokens) -> Any:
        """Returns how many entries each token sees: those whose last token is not behind it.

        Args:
            tokens: `PackedTokens` of a call.

        Returns:
            An integer tensor of shape `(B, L)`.
        """
        return (tokens.ranks + 1) // self.compress_rate

    def _pool(self, values: Any, gates: Any, windows: Any, tokens: PackedTokens) -> Any:
        """Returns the entries of windows, of shape (B, K, D), not yet rotated."""
        rate, dim = self.compress_rate, self.entry_dim
        batch_size, num_tokens = ops.shape(values)[:2]
        num_windows = ops.shape(windows)[1]
        # With a window before the first, where that is the half of an entry.
        num_rows = num_windows + self.use_overlap
        first = num_tokens - tokens.length - tokens.num_before % rate - rate * self.use_overlap
        rows = first + ops.arange(num_rows * rate, dtype="int32")
        rows = ops.clip(rows, 0, num_tokens - 1)
        shape = (batch_size, num_rows, rate, self._width)
        values = ops.reshape(take_rows(values, rows), shape)
        gates = ops.cast(ops.reshape(take_rows(gates, rows), shape), self._score_dtype())
        gates = gates + ops.cast(self.position_bias, gates.dtype)
        if self.use_overlap:
            has_none = (windows == 0)[..., None, None]
            earlier = ops.where(has_none, HIDDEN, gates[:, :-1, :, :dim])
            gates = ops.concatenate([earlier, gates[:, 1:, :, dim:]], axis=2)
            values = ops.concatenate([values[:, :-1, :, :dim], values[:, 1:, :, dim:]], axis=2)
        if gates.shape[2] == 1:  # It has all the weight, and Keras warns of a softmax over one.
            return self.norm(values[:, :, 0])
        weights = ops.cast(ops.softmax(gates, axis=2), values.dtype)
        return self.norm(ops.sum(values * weights, axis=2))

    def _score_dtype(self) -> str:
        return promote_dtypes(self.compute_dtype, "float32")

    def _store(self, kept: Any, entries: Any, windows: Any, tokens: PackedTokens) -> Any:
        """Returns the entries of a cache with those of full windows among new ones."""
        batch_size, num_windows, dim = ops.shape(entries)
        spare = kept.shape[1] - 1  # What is not full yet is written there, and seen by no token.
        num_full = (tokens.num_before + tokens.num_real) // self.compress_rate
        slots = ops.where(windows < num_full, ops.minimum(windows, spare), spare)
        slots = ops.broadcast_to(slots, (batch_size, num_windows))
        sequences = ops.reshape(ops.arange(batch_size, dtype="int32"), (batch_size, 1))
        sequences = ops.broadcast_to(sequences, (batch_size, num_windows))
        indices = ops.reshape(ops.stack([sequences, slots], -1), (batch_size * num_windows, 2))
        updates = ops.reshape(ops.cast(entries, kept.dtype), (batch_size * num_windows, dim))
        return ops.scatter_update(kept, indices, updates)
