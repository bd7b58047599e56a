"""Rematerialization (gradient checkpointing) of layers, which keep only their inputs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import keras

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.layers import block_states, flatten_layers
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.step.named_layers import are_names, find_named_layers

Remat = bool | Sequence[str]

_NORMALIZATIONS = (
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
)
_HALF = ("bfloat16", "float16")


def check_remat(remat: Remat) -> None:
    """Raises an error if the argument `remat` is neither a boolean nor a list of names."""
    if not isinstance(remat, bool) and not are_names(remat):
        raise InvalidInputError(
            "`remat` must be True, False or a list of layers' names, as in ['block_*']; received "
            f"{remat!r}."
        )


def find_blocks(model: keras.Model, remat: Remat) -> list[keras.Layer]:
    """Returns the layers to rematerialize, without layers inside of another such layer.

    `True` means the model's own layers that hold layers. Raises an error if nothing matches.
    """
    if not remat:
        return []
    if remat is True:
        blocks = [layer for layer in model.layers if len(flatten_layers(layer)) > 1]
        if not blocks:
            raise InvalidInputError(
                f"remat=True means layers that hold layers, and {model.name!r} has none. Name the "
                "layers to rematerialize, as in remat=['dense_*']."
            )
        return blocks
    chosen = find_named_layers(model, "remat", remat)
    inner = {
        id(inner_layer)
        for layer in chosen
        for inner_layer in flatten_layers(layer)
        if inner_layer is not layer
    }
    return [layer for layer in chosen if id(layer) not in inner]


def find_normalizations(model: keras.Model, blocks: Sequence[keras.Layer]) -> list[keras.Layer]:
    """Returns the normalization layers to rematerialize in half precision.

    A normalization computes in float32, so that it would keep as much memory as three activations
    in half precision. Recomputing it costs little.

    Args:
        model: `keras.Model`, built, under the policy of its step.
        blocks: Layers that are rematerialized anyway, with the layers inside them.
    """
    inner = {id(inner_layer) for block in blocks for inner_layer in flatten_layers(block)}
    return [
        layer
        for layer in flatten_layers(model)
        if type(layer) in _NORMALIZATIONS
        and layer.compute_dtype in _HALF
        and id(layer) not in inner
    ]


@contextmanager
def rematerialized(blocks: Sequence[keras.Layer]) -> Iterator[None]:
    """Context manager in which layers keep only their inputs for the backward pass."""
    own_calls = [vars(layer).get("call") for layer in blocks]
    for layer in blocks:
        layer.call = backend.current().step.rematerialize(layer, layer.call, block_states(layer))
    try:
        yield
    finally:
        for layer, own_call in zip(blocks, own_calls, strict=True):
            if own_call is None:
                del layer.call
            else:
                layer.call = own_call
