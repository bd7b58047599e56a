"""Functions that check the arguments of an attention layer's call, and its output spec.

They run after Keras has filled in masks and cast the inputs. `key_value_cache` checks the entries
of a cache where it writes them. A layer that uses these functions has the attributes
`use_causal_mask`, a boolean, and `rotary`, a `RotaryEmbedding` or `None`.
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
    """Checks the arguments of an attention layer's call; returns the padding mask (BT) or `None`.

    `inputs` are (BTD). The first of `masks`, the call's `mask` and `inputs_mask`, that is not
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
