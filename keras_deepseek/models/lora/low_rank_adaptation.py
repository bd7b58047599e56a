"""Functions that add a LoRA to a model before training and merge it into the weights afterwards."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_deepseek.backend.keras_private.layers import delete_variables, flatten_layers
from keras_deepseek.checks import check_integer, check_number
from keras_deepseek.errors import (
    InvalidInputError,
    NotSupportedError,
    unknown_name_message,
)
from keras_deepseek.models.checkpoints.merged_kernels import merged_name, merged_value
from keras_deepseek.models.lora.adapted_layers import (
    add_lora,
    find_adapted,
    find_candidates,
    kernel_of,
    lora_variables,
    path_of,
    reset_compiled_functions,
)


def enable_lora(
    model: keras.Model,
    rank: int,
    lora_alpha: float | None = None,
    target_names: Sequence[str] | None = None,
) -> list[str]:
    """Adds a LoRA to layers of a model, in place, and freezes everything else.

    Choose it to fine-tune a model if its optimizer state, or many tuned copies of it, would not
    fit. Each kernel `W` gets two matrices, and the layer computes with

    ```
    W + lora_alpha / rank * A B        A of shape (..., rank), B of shape (rank, W.shape[-1])
    ```

    `B` starts as zeros, so the outputs do not change at first. All else is frozen: biases, norms,
    embeddings that are not named, and routers. It uses Keras's `layer.enable_lora`, so it works for
    any `keras.Model`. For an `EinsumDense` to heads, `A` has a matrix for each head. Each routed
    expert of a `DeepSeekMoE` has an `A` and a `B` of its own; the layers are called `expert_gate`,
    `expert_up` and `expert_down`. On a quantized model it is QLoRA.

    Compile the model, or make its `Trainer`, afterwards: an optimizer keeps the variables that it
    was built for. `fit`, checkpoints and `resume` work as usual; to resume, first enable the same
    LoRA. A `.keras` file of a language model, and `save_to_preset`, hold the merged weights.

    Args:
        model: `keras.Model`, built.
        rank: integer. The number of columns of `A`.
        lora_alpha: float or `None`. The scale in the formula; `None` takes `rank`. Defaults to
            `None`.
        target_names: sequence of strings or `None`. The names of the layers, such as `"query_up"`
            or `"token_embedding"`; every layer with such a name gets a LoRA. `None` takes all
            layers with an `enable_lora`, except for embeddings. Defaults to `None`.

    Returns:
        A list of strings: the paths of the layers.

    Raises:
        InvalidInputError: `rank` or `lora_alpha` is not positive, the model has no layer of a name
            or one without an `enable_lora`, it has a LoRA already, or it is not built.

    Example:

    >>> import keras
    >>> from keras_deepseek.models import enable_lora
    >>> layers = [keras.layers.Dense(8, name="hidden"), keras.layers.Dense(2, name="output")]
    >>> model = keras.Sequential([keras.Input((4,)), *layers], name="scorer")
    >>> enable_lora(model, rank=2, target_names=["hidden"]), len(model.trainable_variables)
    (['scorer/hidden'], 2)

    Reference:

    - [LoRA (Hu et al., 2021)](https://arxiv.org/abs/2106.09685)
    """
    rank = check_integer("rank", rank)
    alpha = rank if lora_alpha is None else check_number("lora_alpha", lora_alpha, above=0)
    check_no_lora(model)
    layers = _choose_layers(model, target_names)
    paths = [path_of(layer) for layer in layers]
    add_lora(model, dict.fromkeys(paths, rank), layers, dict.fromkeys(paths, alpha))
    return paths


def merge_lora(model: keras.Model) -> None:
    """Adds the LoRA of a model to its kernels and removes it, in place.

    Choose it before an export or to serve the model: it computes the same without the products of
    the LoRA. The sum is made in float32, or in the kernel's dtype if that is wider. Afterwards all
    layers are trainable, even those that were frozen before `enable_lora`.

    Args:
        model: `keras.Model`.

    Raises:
        InvalidInputError: The model has no LoRA.
        NotSupportedError: The LoRA belongs to layers with quantized kernels.

    Example:

    >>> import keras
    >>> from keras_deepseek.models import enable_lora, merge_lora
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> num_weights = len(model.weights)
    >>> names = enable_lora(model, rank=2)
    >>> merge_lora(model)
    >>> len(model.weights) == num_weights
    True
    """
    layers = check_lora(model)
    _check_can_be_added(layers)
    for layer in layers:
        kernel_of(layer).assign(merged_value(layer))
        name = merged_name(layer)
        # A function that is already compiled keeps the two matrices; zeros then add nothing.
        for variable in lora_variables(layer):
            variable.assign(ops.zeros(variable.shape, variable.dtype))
        layer.lora_enabled, layer.lora_rank, layer.lora_alpha = False, None, None
        delete_variables(layer, (f"lora_{name}_a", f"lora_{name}_b"))
    # Keras on TensorFlow ignores an unchanged value, and would not pass it on to variables.
    model.trainable = False
    model.trainable = True
    reset_compiled_functions(model)


def _check_can_be_added(layers: Sequence[keras.Layer]) -> None:
    """Raises an error if a layer's kernel is quantized, so that no LoRA can be merged into it."""
    quantized = [layer for layer in layers if layer.quantization_mode not in (None, "float8")]
    if quantized:
        raise NotSupportedError(
            f"{len(quantized)} of the {len(layers)} layers with a LoRA are quantized, such as "
            f"{path_of(quantized[0])!r} in {quantized[0].quantization_mode}: nothing was merged. "
            "The model still computes with its LoRA. To merge it, save it with save_lora_weights, "
            "load it into the model before `quantize`, and merge it there."
        )


def _check_model(model: Any) -> keras.Model:
    if not isinstance(model, keras.Model):
        raise InvalidInputError(f"`model` must be a `keras.Model`, received {model!r}.")
    return model


def check_no_lora(model: keras.Model) -> None:
    """Raises an error if a model already has a LoRA, or is not a Keras model."""
    adapted = find_adapted(_check_model(model))
    if adapted:
        raise InvalidInputError(
            f"The model {model.name!r} has a LoRA of rank {adapted[0].lora_rank} already, in "
            f"{len(adapted)} layers such as {path_of(adapted[0])!r}. Call merge_lora(model) before "
            "you add another one."
        )


def check_lora(model: keras.Model) -> list[keras.Layer]:
    """Returns the layers of a model that have a LoRA, or raises an error if it has none."""
    layers = find_adapted(_check_model(model))
    if not layers:
        raise InvalidInputError(
            f"The model {model.name!r} has no LoRA. Add one with enable_lora(model, rank=8)."
        )
    return layers


def _choose_layers(model: keras.Model, names: Sequence[str] | None) -> list[keras.Layer]:
    """Returns the layers that get a LoRA: those with one of the names, or all but embeddings."""
    candidates = find_candidates(model)
    if names is None:
        chosen = [layer for layer in candidates if not isinstance(layer, keras.layers.Embedding)]
    else:
        if isinstance(names, str) or not names:
            raise InvalidInputError(
                f"`target_names` must be a list of layer names, received {names!r}."
            )
        _check_names(model, names, {layer.name for layer in candidates})
        chosen = [layer for layer in candidates if layer.name in names]
    if not chosen:
        raise InvalidInputError(
            f"The model {model.name!r} has no layer that a LoRA can be added to, such as `Dense`."
        )
    return chosen


def _check_names(model: keras.Model, names: Sequence[str], candidates: set[str]) -> None:
    for name in names:
        if name in candidates:
            continue
        for layer in flatten_layers(model):
            if layer.name == name:
                raise InvalidInputError(
                    f"No LoRA can be added to {name!r}, which is a "
                    f"`{type(layer).__name__}`. Choose from {', '.join(sorted(candidates))}."
                )
        raise InvalidInputError(unknown_name_message("layer in `target_names`", name, candidates))
