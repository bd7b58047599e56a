"""What every attention layer checks of a call, and what it says that it returns.

Between Keras, which fills in masks and casts what is floating, and the layers, which from here on
go by tensors of the right kind. What a cache holds beyond that, `key_value_cache` checks where it
is written.
"""

import inspect
from typing import Any

import keras

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.attention.key_value_cache import Cache, check_cache_arguments
from keras_deepseek.layers.input_check import check_floating
from keras_deepseek.layers.last_tokens import shape_of_last
from keras_deepseek.layers.mask_check import check_mask
from keras_deepseek.layers.position.position_check import check_length
from keras_deepseek.layers.token_dim import check_shape


def check_call(
    layer: Any, inputs: Any, masks: tuple[Any, Any], cache: Cache | None, cache_index: Any
) -> Any:
    """Returns the mask that a call goes by, or says what does not fit.

    Args:
        layer: `keras.Layer`, which is causal unless its `use_causal_mask` is false.
        inputs: Tensor of shape `(batch_size, length, dim)`.
        masks: Pair of the `mask` and the `inputs_mask` of the call: the first that is not `None`
            counts.
        cache: dict or `None`.
        cache_index: integer, integer scalar tensor or `None`.

    Returns:
        A tensor of shape `(batch_size, length)`, or `None`.

    Raises:
        InvalidInputError: The inputs are not floating, the mask is not boolean or not of their
            shape, cache and index do not belong together, or the layer is not causal and has a
            cache.
    """
    check_floating(inputs, layer.name)
    check_cache_arguments(cache, cache_index)
    if cache is not None and not getattr(layer, "use_causal_mask", True):
        raise InvalidInputError(
            f"{layer.name!r} received a `cache`, which needs `use_causal_mask=True`: without it "
            f"earlier outputs would change with every token."
        )
    mask = masks[1] if masks[0] is None else masks[0]
    check_mask(mask, inputs)
    return mask


def check_room(layer: Any, inputs: Any, positions: Any, cache_index: Any) -> None:
    """Raises an error where a call reaches beyond the positions that a layer is made for.

    Args:
        layer: `keras.Layer`. The `max_length` of its `rotary` is the bound; without a `rotary` it
            takes no positions.
        inputs: Tensor of shape `(batch_size, length, dim)`, padding included.
        positions: Tensor, whose numbers are not looked at, or `None`.
        cache_index: integer, integer scalar tensor, or `None` for 0.

    Raises:
        InvalidInputError: There are more positions than `max_length`, or positions and no `rotary`.
    """
    rotary = getattr(layer, "rotary", None)
    if positions is not None and rotary is None:
        raise InvalidInputError(
            f"{layer.name!r} received `positions`, which only a rotary embedding takes: make "
            f"the layer with `rotary=RotaryEmbedding(...)`, or leave them out."
        )
    if positions is None and rotary is not None:
        start = 0 if cache_index is None else cache_index
        check_length(layer.name, rotary.max_length, inputs.shape[1], start)


def read_length(layer: Any, inputs: Any) -> int:
    """Returns the length of a call to a layer that lays out blocks, which must know it.

    Args:
        layer: `keras.Layer`.
        inputs: Tensor of shape `(batch_size, length, dim)`.

    Raises:
        InvalidInputError: The length is not known.
    """
    if inputs.shape[1] is None:
        raise InvalidInputError(
            f"{layer.name!r} lays out blocks for a known length, received inputs of shape "
            f"{tuple(inputs.shape)}. Pad them to a fixed length, and mask the padding."
        )
    return int(inputs.shape[1])


def compute_call_spec(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Returns what `compute_output_spec` of a layer gives: outputs, and with a cache the pair.

    So a Functional model that can't be called is refused while it is made.

    Args:
        layer: `keras.Layer` whose `call` takes `inputs`, and may take `positions` and a `cache`.
        *args: Those of its `call`.
        **kwargs: Those of its `call`.

    Raises:
        InvalidInputError: The inputs are not floating, of another rank, or longer than the layer's
            `max_length`; or what is given beside them does not fit.
    """
    given = inspect.signature(layer.call).bind(*args, **kwargs).arguments
    inputs, cache, index = given["inputs"], given.get("cache"), given.get("cache_index")
    check_call(layer, inputs, (given.get("mask"), given.get("inputs_mask")), cache, index)
    check_shape(layer.name, inputs.shape)
    index = None if isinstance(index, keras.KerasTensor) else index
    check_room(layer, inputs, given.get("positions"), index)
    shape = shape_of_last(layer.compute_output_shape(inputs.shape), given.get("num_outputs"))
    outputs = keras.KerasTensor(shape, layer.compute_dtype)
    if cache is None:
        return outputs
    return outputs, {
        name: keras.KerasTensor(tensor.shape, tensor.dtype) for name, tensor in cache.items()
    }
