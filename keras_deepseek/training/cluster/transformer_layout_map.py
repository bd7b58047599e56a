"""Tensor and expert parallelism: the split of a transformer's weights over devices.

The result is for a `keras.distribution.ModelParallel`, the `distributed_strategy` of a `Trainer`.
"""

import logging
from collections.abc import Iterator

import keras

from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.layers import DeepSeekMoE, SwiGLU
from keras_deepseek.layers.heads.vocabulary_head import VocabularyHead

_logger = logging.getLogger(__name__)

Split = tuple[keras.Variable | None, tuple[int, ...], str]
"""A weight, the axes that it may be split along, best first, and the axis of the mesh for them."""


def transformer_layout_map(
    model: keras.Model,
    device_mesh: keras.distribution.DeviceMesh,
    *,
    model_axis: str = "model",
    expert_axis: str | None = None,
) -> keras.distribution.LayoutMap:
    """Returns the layout of a transformer's weights over the devices of a mesh.

    Attention is split by heads, in layers of Keras and of this package. `SwiGLU` is split by hidden
    features, also in shared experts. The experts of `DeepSeekMoE` are split by expert. Embedding
    tables are split by vocabulary, or by features if the vocabulary is not divisible; vocabulary
    heads are split by vocabulary.

    The first projection of a block is split by columns and the last one by rows, so each block
    needs one sum over the devices (Shoeybi et al., 2019). All other weights are whole on each
    device. To split a layer that is not listed, such as a `Dense`, add it:
    `layout_map[variable.path] = (None, "model")`. The numbers are those of one device, up to
    rounding.

    Args:
        model: `keras.Model`, built.
        device_mesh: `keras.distribution.DeviceMesh` that has the axes below.
        model_axis: string. The axis of the mesh for heads, features and vocabularies. Defaults to
            `"model"`.
        expert_axis: string. The axis of the mesh for experts. Defaults to `None`, `model_axis`.

    Returns:
        `keras.distribution.LayoutMap`. A weight without a divisible axis is left out, with a
            warning.

    Raises:
        InvalidInputError: The model is not built, the mesh has no such axis, or no weight can be
            split.

    Example:

    >>> import keras
    >>> from keras_deepseek.layers import SwiGLU
    >>> model = keras.Sequential([keras.Input((5, 12)), SwiGLU(32)])
    >>> mesh = keras.distribution.DeviceMesh((1, 2), ["batch", "model"], ["cpu:0", "cpu:1"])
    >>> layout_map = transformer_layout_map(model, mesh)
    >>> {path.split("/")[-2]: layout_map[path].axes for path in layout_map}
    {'gate': (None, 'model'), 'up': (None, 'model'), 'down': ('model', None)}

    Reference:

    - [Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism
      (Shoeybi et al., 2019)](https://arxiv.org/abs/1909.08053)
    - [GShard: Scaling Giant Models with Conditional Computation and Automatic Sharding (Lepikhin et
      al., 2020)](https://arxiv.org/abs/2006.16668)
    """
    if not model.built:
        raise InvalidInputError(
            f"Model {model.name!r} is not built, so its weights are unknown: build it, or call "
            "it once."
        )
    sizes = dict(zip(device_mesh.axis_names, device_mesh.shape, strict=True))
    expert_axis = model_axis if expert_axis is None else expert_axis
    for axis in (model_axis, expert_axis):
        if axis not in sizes:
            raise InvalidInputError(unknown_name_message("axis of the mesh", axis, sizes))
    layout_map = keras.distribution.LayoutMap(device_mesh)
    split_paths: set[str] = set()
    whole: list[keras.Variable] = []
    for layer in flatten_layers(model):
        for variable, dims, axis in _find_splits(layer, model_axis, expert_axis):
            if variable is None or variable.path in split_paths:
                continue  # The layer has no bias, or was found twice.
            split_paths.add(variable.path)
            # The first dimension that the devices divide.
            dim = next((dim for dim in dims if variable.shape[dim] % sizes[axis] == 0), None)
            if dim is None:
                whole.append(variable)
            else:
                rank = len(variable.shape)
                layout_map[variable.path] = tuple(axis if i == dim else None for i in range(rank))
    if not len(layout_map):
        raise InvalidInputError(
            f"{model.name!r} has no attention, SwiGLU, experts or embedding table whose heads, "
            f"features or rows are divisible by {sizes[model_axis]} devices."
        )
    if whole:
        names = ", ".join(f"{variable.path} {tuple(variable.shape)}" for variable in whole)
        _logger.warning("Not divisible by the devices, so whole on each: %s.", names)
    return layout_map


def _find_splits(layer: keras.Layer, model_axis: str, expert_axis: str) -> Iterator[Split]:
    """Yields the layout of a layer's weights, and of inner weights that only it knows."""
    if isinstance(layer, SwiGLU):
        for dense in (layer.gate, layer.up):
            yield dense.kernel, (1,), model_axis
            yield dense.bias, (0,), model_axis
        yield layer.down.kernel, (0,), model_axis
    elif isinstance(layer, DeepSeekMoE):
        for kernel in (layer.gate_kernel, layer.up_kernel, layer.down_kernel):
            yield kernel, (0,), expert_axis
    elif isinstance(layer, keras.layers.Embedding):
        yield layer.embeddings, (0, 1), model_axis
    elif isinstance(layer, VocabularyHead):
        if layer.token_embedding is None:
            yield layer.kernel, (1, 0), model_axis
        yield layer.bias, (0,), model_axis
    elif isinstance(layer, keras.layers.EinsumDense):
        yield from _split_projection(layer, model_axis)


def _split_projection(layer: keras.layers.EinsumDense, axis: str) -> Iterator[Split]:
    """Yields the layout of an einsum projection's weights, divided by heads or groups.

    In the kernel, the letter for heads is next to another letter of the outputs (`dhk` in
    `btd,dhk->bthk`) or of the inputs (`hkd` in `bthk,hkd->btd`). A letter for groups is in inputs,
    kernel and outputs.
    """
    inputs, kernel, outputs = layer.equation.replace("->", ",").split(",")
    groups = [letter for letter in kernel if letter in inputs and letter in outputs]
    produced = [letter for letter in kernel if letter not in inputs]
    consumed = [letter for letter in kernel if letter not in outputs]
    heads = next((letters for letters in (groups, produced[:-1], consumed[:-1]) if letters), None)
    if heads is None:
        return
    yield layer.kernel, (kernel.index(heads[0]),), axis
    if layer.bias is not None and heads[0] in layer.bias_axes:
        # The axes of the bias are the last ones of the outputs.
        first = min(outputs.index(letter) for letter in layer.bias_axes)
        yield layer.bias, (outputs.index(heads[0]) - first,), axis
