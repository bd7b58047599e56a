"""Functions that find the layers that can have a LoRA, and their LoRA variables.

Keras's own layers implement it: `Dense`, `EinsumDense`, the convolutions and `Embedding`. Each has
a kernel `W` and two matrices, and computes with `W + lora_alpha / lora_rank * A B`. So do the
`ExpertKernels` of a `DeepSeekMoE`, with two matrices for each expert.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.moe.expert_kernels import ExpertKernels
from keras_deepseek.models.checkpoints.merged_kernels import merged_name, own_variable


def kernel_of(layer: keras.Layer) -> keras.Variable:
    """Returns the kernel variable of a built layer, to which its LoRA is added."""
    return own_variable(layer, merged_name(layer))


def path_of(layer: keras.Layer) -> str:
    """Returns a layer's name in LoRA files: its kernel's path without the last component."""
    return str(kernel_of(layer).path.rpartition("/")[0])


def lora_shapes(layer: keras.Layer, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the shapes of the two LoRA variables that a layer has or would have."""
    if isinstance(layer, ExpertKernels):
        return (*layer.kernel_shape[:-1], rank), (
            layer.kernel_shape[0],
            rank,
            layer.kernel_shape[2],
        )
    # In int4 the variable has another shape than the kernel, which is computed from it.
    is_packed = layer.quantization_mode == "int4"
    kernel = getattr(layer, merged_name(layer)) if is_packed else kernel_of(layer)
    return (*kernel.shape[:-1], rank), (rank, kernel.shape[-1])


def lora_variables(layer: keras.Layer) -> tuple[keras.Variable, keras.Variable]:
    """Returns the two LoRA variables, A and B, of an adapted layer."""
    name = merged_name(layer)
    return getattr(layer, f"lora_{name}_a"), getattr(layer, f"lora_{name}_b")


def read_matrices(layer: keras.Layer) -> tuple[Array, Array]:
    """Returns a layer's LoRA matrices A and B as NumPy arrays.

    If they are sharded over several processes, all of them must call it.
    """
    a, b = (
        backend.current().distribution.read_whole(variable.value)
        for variable in lora_variables(layer)
    )
    return a, b


def find_candidates(model: keras.Model) -> list[keras.Layer]:
    """Returns the layers that have or can have a LoRA, in the model's order."""
    # A KerasHub backbone has `enable_lora` too, for its layers, which are in the list as well.
    layers = [layer for layer in flatten_layers(model) if not isinstance(layer, keras.Model)]
    candidates = [layer for layer in layers if hasattr(layer, "enable_lora")]
    unbuilt = [layer.name for layer in candidates if not layer.built]
    if unbuilt:
        raise InvalidInputError(
            f"The layers {', '.join(unbuilt)} have no weights yet, so no LoRA can be added to "
            "them. Build the model, or call it on a batch, first."
        )
    return _in_order(model, candidates)


def find_adapted(model: keras.Model) -> list[keras.Layer]:
    """Returns the layers that have a LoRA, in the model's order."""
    adapted = [layer for layer in flatten_layers(model) if getattr(layer, "lora_enabled", False)]
    return _in_order(model, adapted)


def _in_order(model: keras.Model, layers: list[keras.Layer]) -> list[keras.Layer]:
    """Sorts layers by the position of their kernels in `model.variables`.

    Keras lists the last layers first.
    """
    positions = {id(variable): position for position, variable in enumerate(model.variables)}
    return sorted(layers, key=lambda layer: positions[id(kernel_of(layer))])


def add_lora(
    model: keras.Model, ranks: Mapping[str, int], layers: list[keras.Layer], lora_alpha: Any
) -> None:
    """Adds a LoRA to some layers of a model, and freezes all other weights.

    `ranks` and the scales, `lora_alpha`, are by path of a layer.
    """
    for layer in layers:
        path = path_of(layer)
        with ExitStack() as stack:
            # Keras names a weight by its name scopes. These give it the path of the kernel.
            for part in path.split("/")[:-1]:
                stack.enter_context(keras.name_scope(part))
            layer.enable_lora(ranks[path], lora_alpha=lora_alpha[path])
    adapters = {id(variable) for layer in layers for variable in lora_variables(layer)}
    for layer in flatten_layers(model):
        if not adapters & {id(variable) for variable in layer.variables}:
            layer.trainable = False
    for variable in model.variables:  # Other variables of layers with adapters.
        if id(variable) not in adapters:
            variable.trainable = False
    reset_compiled_functions(model)


def reset_compiled_functions(model: keras.Model) -> None:
    """Makes Keras compile a model again after its variables have changed."""
    for name in ("train_function", "test_function", "predict_function"):
        if hasattr(model, name):
            setattr(model, name, None)
