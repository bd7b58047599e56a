"""The base class of self-attention layers with a cache."""

from typing import Any

import keras
from keras import ops

from keras_deepseek.checks import check_integer
from keras_deepseek.layers.attention.call_check import compute_call_spec
from keras_deepseek.layers.attention.key_value_cache import Cache, make_cache
from keras_deepseek.layers.input_check import Shape


class SelfAttentionLayer(keras.Layer):
    """A self-attention layer that makes its own cache, and keeps the shape of its inputs.

    A subclass overrides `call`, whose documentation it inherits, and the members that describe its
    cache.
    """

    use_causal_mask: bool
    rotary: Any
    """A `RotaryEmbedding`, or `None` for a layer that rotates nothing."""

    @property
    def _cache_dtype(self) -> str:
        """The dtype of the cache's tensors other than the mask."""
        return str(self.compute_dtype)

    @property
    def _cache_entries(self) -> dict[str, tuple[int, ...]]:
        """The shape of one token's data, by name."""
        return {}

    def _state_shapes(self, max_length: int) -> dict[str, tuple[int, ...]]:
        """Returns the shape of one sequence's data, by name, for a cache of `max_length` slots."""
        return {}

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
        """Returns the outputs of attention, and with a cache also the new cache.

        Args:
            inputs: Floating-point tensor of shape `(batch_size, length, dim)`.
            mask: Boolean tensor of shape `(batch_size, length)`, false at padding, or `None` to use
                the mask of `inputs`. Defaults to `None`.
            positions: Integer tensor of shape `(batch_size, length)`, or `None` to count tokens,
                continuing from the cache. Only with a `rotary`. Defaults to `None`.
            cache: dict of tensors from `make_cache` or an earlier call, or `None`. Defaults to
                `None`.
            cache_index: integer or integer scalar tensor. The cache slot of the call's first token:
                the number of tokens in the cache, padding included. Defaults to `None`.
            training: boolean or `None`. Whether to drop attention weights. `None` takes the value
                of the surrounding call. Defaults to `None`.
            inputs_mask: The mask of `inputs`, which Keras sets if the call has several tensors.
                `mask` takes precedence. Defaults to `None`.

        Returns:
            A tensor of the shape of `inputs`; with a cache, a pair of that tensor and the new
            cache.
        """
        raise NotImplementedError

    def make_cache(self, batch_size: int, max_length: int) -> Cache:
        """Returns an empty cache to pass as `cache` to a call.

        Args:
            batch_size: integer. Number of sequences.
            max_length: integer. The most tokens that the cache can hold, padding included.

        Returns:
            A dict of tensors.

        Raises:
            InvalidInputError: `max_length` is not a positive integer, or `batch_size` is not a
                non-negative integer.
        """
        states = self._state_shapes(check_integer("max_length", max_length))
        return make_cache(
            batch_size, max_length, self._cache_entries, self._cache_dtype, states=states
        )

    def _rotate(self, x: Any, positions: Any, start: Any = 0) -> Any:
        """Returns queries or keys (BT...) rotated by `rotary`, if there is one, in their dtype."""
        if self.rotary is None:
            return x
        return ops.cast(self.rotary(x, positions=positions, start_index=start), x.dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return compute_call_spec(self, *args, **kwargs)
