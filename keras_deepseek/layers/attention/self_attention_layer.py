"""The base class of self-attention layers with a cache, and the checks of their calls.

The checks run after Keras has filled in masks and cast the inputs. `key_value_cache` checks the
entries of a cache where it writes them.
"""

import inspect
from typing import Any

import keras
from keras import ops

from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.attention.key_value_cache import Cache, check_cache_arguments, make_cache
from keras_deepseek.layers.input_check import Shape, check_floating, check_shape
from keras_deepseek.layers.last_tokens import shape_of_last
from keras_deepseek.layers.masks import check_mask
from keras_deepseek.layers.position.start_index import check_length
from keras_deepseek.layers.quantized_layers import CompositeLayer

_MASKS = ("query_mask", "value_mask", "key_mask")


class SelfAttentionLayer(CompositeLayer):
    """A self-attention layer that makes its own cache, and keeps the shape of its inputs.

    A subclass overrides `call`, whose documentation it inherits, and the members that describe its
    cache. A layer may also be called like `keras.layers.MultiHeadAttention`.
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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = _read_self_attention(self, args, kwargs)
        return super().__call__(*args, **kwargs)

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
            cache_index: integer, or integer tensor, scalar or of shape `(batch_size,)`. The cache
                slot of the call's first token, of all sequences or of each: the number of tokens
                in the cache, padding included. Defaults to `None`.
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


def check_call(
    layer: Any, inputs: Any, masks: tuple[Any, Any], cache: Cache | None, cache_index: Any
) -> Any:
    """Checks the arguments of an attention layer's call; returns the padding mask (BT) or `None`.

    `inputs` are (BTD). `masks` are the call's `mask` and `inputs_mask`: the first that is not
    `None` is used. Only a causal layer takes a cache, and only with an index.
    """
    check_floating(inputs, layer.name)
    check_cache_arguments(cache, cache_index)
    if cache is not None and not layer.use_causal_mask:
        raise InvalidInputError(
            f"{layer.name!r} received a `cache`, which needs `use_causal_mask=True`: without it "
            f"earlier outputs would change with every token."
        )
    mask = masks[1] if masks[0] is None else masks[0]
    check_mask(mask, inputs)
    return mask


def check_room(layer: Any, inputs: Any, positions: Any, cache_index: Any) -> None:
    """Raises an error if a call has tokens beyond the `max_length` of the layer's `rotary`.

    A layer without a `rotary` takes no positions. `inputs` (BTD) include padding. The values of
    `positions` are not read. A `cache_index` of `None` is 0.
    """
    rotary = layer.rotary
    if positions is not None and rotary is None:
        raise InvalidInputError(
            f"{layer.name!r} received `positions`, but has no rotary embedding to use them. Create "
            f"the layer with `rotary=RotaryEmbedding(...)`, or omit `positions`."
        )
    if positions is None and rotary is not None:
        start = 0 if cache_index is None else cache_index
        check_length(layer.name, rotary.max_length, inputs.shape[1], start)


def read_length(layer: Any, inputs: Any) -> int:
    """Returns the static sequence length of the inputs, or raises an error if it is unknown.

    A layer needs it to lay out blocks.
    """
    if inputs.shape[1] is None:
        raise InvalidInputError(
            f"{layer.name!r} needs inputs of a known length, received the shape "
            f"{tuple(inputs.shape)}. Pad them to a fixed length, and mask the padding."
        )
    return int(inputs.shape[1])


def compute_call_spec(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Returns the output spec of an attention layer: outputs, and with a cache also the new cache.

    It runs the checks of a call, so that an invalid Functional model fails while it is built.
    `*args` and `**kwargs` are those of the layer's `call`, which takes `inputs` and may take
    `positions` and a `cache`.
    """
    arguments = inspect.signature(layer.call).bind(*args, **kwargs).arguments
    inputs, cache, index = arguments["inputs"], arguments.get("cache"), arguments.get("cache_index")
    check_call(layer, inputs, (arguments.get("mask"), arguments.get("inputs_mask")), cache, index)
    check_shape(layer.name, inputs.shape)
    index = None if isinstance(index, keras.KerasTensor) else index
    check_room(layer, inputs, arguments.get("positions"), index)
    shape = shape_of_last(layer.compute_output_shape(inputs.shape), arguments.get("num_outputs"))
    outputs = keras.KerasTensor(shape, layer.compute_dtype)
    if cache is None:
        return outputs
    return outputs, {
        name: keras.KerasTensor(tensor.shape, tensor.dtype) for name, tensor in cache.items()
    }


def _read_self_attention(
    layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Converts the arguments of a call like `MultiHeadAttention`'s to those of a layer's `call`.

    Arguments of the layer's `call` pass unchanged. `query`, `value` and `key` must be the same
    object, so this must run before Keras casts each of them to a new one. Arguments that these
    layers lack raise an `InvalidInputError`.
    """
    keywords = dict(kwargs)
    inputs = args[0] if args else keywords.pop("query", keywords.pop("inputs", None))
    positional = list(args[1:])
    while positional and positional[0] is inputs:
        del positional[0]  # A value or key that is the query.
    values_and_keys = [keywords.pop(name, None) for name in ("value", "key")]
    if positional and _is_floating(positional[0]):  # A value or key; a mask is not floating.
        values_and_keys.append(positional[0])
    if any(tensor is not None and tensor is not inputs for tensor in values_and_keys):
        raise InvalidInputError(
            f"{layer.name!r} is self-attention: query, value and key must be the same tensor. For "
            "cross-attention use keras.layers.MultiHeadAttention."
        )
    masks = [mask for mask in (keywords.pop(name, None) for name in _MASKS) if mask is not None]
    if masks:
        keywords.setdefault("mask", masks[0])
    name = "attention_mask"
    takes_mask = name in keywords and name in inspect.signature(layer.call).parameters
    attention_mask = None if takes_mask else keywords.pop(name, None)
    returns_scores = keywords.pop("return_attention_scores", False)
    if attention_mask is not None or returns_scores:
        raise InvalidInputError(
            f"{layer.name!r} takes no `attention_mask` and returns no scores. Pass `mask=` to hide "
            "padding. Arguments of the layer choose what else a token sees."
        )
    is_causal = keywords.pop("use_causal_mask", None)
    if is_causal is not None and bool(is_causal) != layer.use_causal_mask:
        raise InvalidInputError(
            f"{layer.name!r} was created with use_causal_mask={layer.use_causal_mask} and called "
            f"with use_causal_mask={is_causal}. Set it when you create the layer."
        )
    return (inputs, *positional), keywords


def _is_floating(value: Any) -> bool:
    is_tensor = hasattr(value, "dtype") and hasattr(value, "shape")
    return is_tensor and keras.backend.is_float_dtype(keras.backend.standardize_dtype(value.dtype))
