"""The layers of a model that a LoRA is added to, and what each then has.

Keras's own layers add it: `Dense`, `EinsumDense`, the convolutions and `Embedding`. Each has a
kernel `W` and two matrices, and computes with `W + lora_alpha / lora_rank * A B`.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import keras
from keras import ops

from keras_deepseek import backend
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_private.keras_internals import flatten_layers
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models.checkpoints.merged_kernels import merged_name, own_variable


def kernel_of(layer: keras.Layer) -> keras.Variable:
    """Returns the variable that a LoRA is added to.

    Args:
        layer: `keras.Layer` with an `enable_lora`, built.
    """
    return own_variable(layer, merged_name(layer))


def path_of(layer: keras.Layer) -> str:
    """Returns what a layer is named by in a model: the path of its kernel without the last part.

    Args:
        layer: `keras.Layer` with an `enable_lora`, built.
    """
    return str(kernel_of(layer).path.rpartition("/")[0])


def lora_variables(layer: keras.Layer) -> tuple[keras.Variable, keras.Variable]:
    """Returns the two matrices of a layer that has a LoRA.

    Args:
        layer: `keras.Layer`.
    """
    name = merged_name(layer)
    return getattr(layer, f"lora_{name}_a"), getattr(layer, f"lora_{name}_b")


def read_matrices(layer: keras.Layer) -> tuple[Array, Array]:
    """Returns the two matrices as arrays; where they lie in several processes, all must call it.

    Args:
        layer: `keras.Layer` that has a LoRA.

    Raises:
        PeerLostError: Another process has ended, or does not answer.
    """
    a, b = (backend.current().distribution.read_whole(each.value) for each in lora_variables(layer))
    return a, b


def find_candidates(model: keras.Model) -> list[keras.Layer]:
    """Returns the layers that a LoRA can be added to, or is, in the model's order.

    Args:
        model: `keras.Model`.

    Raises:
        InvalidInputError: One of them has no weights yet.
    """
    # A backbone of KerasHub has one that adds it to its layers, which are found here as well.
    layers = [each for each in flatten_layers(model) if not isinstance(each, keras.Model)]
    found = [each for each in layers if hasattr(each, "enable_lora")]
    unbuilt = [each.name for each in found if not each.built]
    if unbuilt:
        raise InvalidInputError(
            f"The layers {', '.join(unbuilt)} have no weights yet, so no LoRA can be added to "
            "them. Build the model, or call it on a batch, first."
        )
    return _in_order(model, found)


def find_adapted(model: keras.Model) -> list[keras.Layer]:
    """Returns the layers that have a LoRA, in the model's order.

    Args:
        model: `keras.Model`.
    """
    found = [each for each in flatten_layers(model) if getattr(each, "lora_enabled", False)]
    return _in_order(model, found)


def _in_order(model: keras.Model, layers: list[keras.Layer]) -> list[keras.Layer]:
    """Returns the layers as their kernels stand in the model: Keras lists the last ones first."""
    places = {id(variable): place for place, variable in enumerate(model.variables)}
    return sorted(layers, key=lambda layer: places[id(kernel_of(layer))])


def add_lora(
    model: keras.Model, ranks: Mapping[str, int], layers: list[keras.Layer], lora_alpha: Any
) -> None:
    """Adds a LoRA to layers, and freezes all else.

    Args:
        model: `keras.Model`, which has none.
        ranks: dict of integers. The rank of each layer, by its path.
        layers: list of `keras.Layer`s.
        lora_alpha: dict of floats by path.
    """
    for layer in layers:
        path = path_of(layer)
        with ExitStack() as stack:
            # Keras names a weight by the scopes that it is made in: by these, as the kernel is.
            for part in path.split("/")[:-1]:
                stack.enter_context(keras.name_scope(part))
            layer.enable_lora(ranks[path], lora_alpha=lora_alpha[path])
    adapters = {id(each) for layer in layers for each in lora_variables(layer)}
    for layer in flatten_layers(model):
        if not adapters & {id(each) for each in layer.variables}:
            layer.trainable = False
    for variable in model.variables:  # Those of layers that hold adapters as well.
        if id(variable) not in adapters:
            variable.trainable = False
    reset_compiled_functions(model)


def reset_compiled_functions(model: keras.Model) -> None:
    """Makes Keras compile anew what it compiled for the variables that a model had.

    Args:
        model: `keras.Model`.
    """
    for name in ("train_function", "test_function", "predict_function"):
        if hasattr(model, name):
            setattr(model, name, None)


def zero_like(variable: keras.Variable) -> Any:
    """Returns zeros of the shape and dtype of a variable.

    Args:
        variable: `keras.Variable`.
    """
    return ops.zeros(variable.shape, variable.dtype)
