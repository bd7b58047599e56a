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

    A subclass overrides the members that describe its cache. `call` takes the arguments `inputs`,
    `mask`, `cache`, `cache_index` and `inputs_mask`.
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
