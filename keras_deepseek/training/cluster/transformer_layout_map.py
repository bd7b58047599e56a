"""Tensor and expert parallelism, and FSDP: the split of a model's weights over devices.

The result is for a `keras.distribution.ModelParallel`, the `distributed_strategy` of a `Trainer`.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

import keras

from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.backend.keras_private.variables import without_values
from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.layers import DeepSeekMoE, GroupedQueryAttention, SwiGLU
from keras_deepseek.layers.heads.vocabulary_head import VocabularyHead

_logger = logging.getLogger(__name__)

Split = tuple[keras.Variable | None, tuple[int, ...], str | None]
"""A weight, the axes that it may be split along, best first, and the axis of the mesh for them."""


def transformer_layout_map(
    model: keras.Model | Callable[[], keras.Model],
    device_mesh: keras.distribution.DeviceMesh,
    *,
    model_axis: str | None = "model",
    expert_axis: str | None = None,
    data_axis: str | None = None,
) -> keras.distribution.LayoutMap:
    """Returns the layout of a transformer's weights over the devices of a mesh.

    Attention is split by heads, in layers of Keras and of this package. `SwiGLU` is split by hidden
    features, also in shared experts. The experts of `DeepSeekMoE` are split by expert. Embedding
    tables are split by vocabulary, or by features if the vocabulary is not divisible; vocabulary
    heads are split by vocabulary.

    The first projection of a block is split by columns and the last one by rows, so each block
    needs one sum over the devices (Shoeybi et al., 2019). To split a layer that is not listed, such
    as a `Dense`, by the model axis, add it: `layout_map[variable.path] = (None, "model")`.

    With `data_axis`, each weight of two or more dimensions is also split over the devices that
    divide the batch, along its largest dimension that is left and divisible: FSDP, or ZeRO-3. The
    optimizer's state follows. The compiler gathers a weight where it is used. All other weights are
    whole on each device. The numbers are those of one device, up to rounding.

    Args:
        model: `keras.Model`, built; or function that builds one. The function is called without
            memory for weights, so that the model itself may be built in its layout, by the
            `Trainer`.
        device_mesh: `keras.distribution.DeviceMesh` that has the axes below.
        model_axis: string or `None`. The axis of the mesh for heads, features and vocabularies.
            `None` leaves them whole. Defaults to `"model"`.
        expert_axis: string. The axis of the mesh for experts. Defaults to `None`, `model_axis`.
        data_axis: string. The axis of the mesh that divides the batch, to split weights over it.
            Defaults to `None`: each device of it has all weights of its part of the model.

    Returns:
        `keras.distribution.LayoutMap`. A weight without a divisible dimension is left out, with a
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
    - [ZeRO: Memory Optimizations Toward Training Trillion Parameter Models (Rajbhandari et al.,
      2020)](https://arxiv.org/abs/1910.02054)
    """
    if not isinstance(model, keras.Model):
        with without_values():
            model = model()
    if not model.built:
        raise InvalidInputError(
            f"Model {model.name!r} is not built, so its weights are unknown: build it, or call "
            "it once."
        )
    sizes = dict(zip(device_mesh.axis_names, device_mesh.shape, strict=True))
    for axis in (model_axis, expert_axis, data_axis):
        if axis is not None and axis not in sizes:
            raise InvalidInputError(unknown_name_message("axis of the mesh", axis, sizes))
    splits = _find_all_splits(model, model_axis, expert_axis or model_axis, data_axis)
    layout_map = keras.distribution.LayoutMap(device_mesh)
    for path, layout in _divide(splits, sizes).items():
        if any(layout):
            layout_map[path] = tuple(layout)
    if not len(layout_map):
        raise InvalidInputError(
            f"{model.name!r} has no attention, SwiGLU, experts or embedding table whose heads, "
            f"features or rows are divisible by the devices {sizes}."
        )
    return layout_map


def _divide(splits: Iterable[Split], sizes: Mapping[str, int]) -> dict[str, list[str | None]]:
    """Returns the axes of the mesh for the dimensions of each weight, by its path."""
    layouts: dict[str, list[str | None]] = {}
    variables: dict[str, keras.Variable] = {}
    undivided: dict[str, dict[str, tuple[int, ...]]] = {}
    for variable, dims, axis in splits:
        if variable is None or axis is None:
            continue  # The layer has no bias, or no axis is given for it.
        if variables.setdefault(variable.path, variable).shape != variable.shape:
            raise InvalidInputError(
                f"Two weights have the path {variable.path!r}, by which a layout is found: give "
                "their layers different names."
            )
        layout = layouts.setdefault(variable.path, [None] * len(variable.shape))
        if axis in layout:
            continue  # The layer was found twice.
        # The first dimension that the devices divide.
        for dim in dims:
            if layout[dim] is None and variable.shape[dim] % sizes[axis] == 0:
                layout[dim] = axis
                break
        else:
            undivided.setdefault(axis, {})[variable.path] = tuple(variable.shape)
    for axis, shapes in undivided.items():
        names = ", ".join(f"{path} {shape}" for path, shape in shapes.items())
        _logger.warning("Not divisible by the devices of %r, so whole on each: %s.", axis, names)
    return layouts


def _find_all_splits(
    model: keras.Model, model_axis: str | None, expert_axis: str | None, data_axis: str | None
) -> Iterator[Split]:
    """Yields the layouts of all weights; those over the data axis last, as they take what is left.

    Vectors, such as biases and the weights of norms, are not worth a message to collect them.
    """
    for layer in flatten_layers(model):
        yield from _find_splits(layer, model_axis, expert_axis)
    for variable in model.variables:
        if len(variable.shape) > 1:
            # The largest dimension first.
            dims = sorted(range(len(variable.shape)), key=lambda dim: -variable.shape[dim])
            yield variable, tuple(dims), data_axis


def _find_splits(
    layer: keras.Layer, model_axis: str | None, expert_axis: str | None
) -> Iterator[Split]:
    """Yields the layout of a layer's weights, and of inner weights that only it knows."""
    if isinstance(layer, SwiGLU):
        for dense in (layer.gate, layer.up):
            yield dense.kernel, (1,), model_axis
            yield dense.bias, (0,), model_axis
        yield layer.down.kernel, (0,), model_axis
    elif isinstance(layer, GroupedQueryAttention):
        for dense in (layer.query, layer.key, layer.value):
            yield dense.kernel, (1,), model_axis
            yield dense.bias, (0,), model_axis
        yield layer.output_projection.kernel, (0,), model_axis
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


def _split_projection(layer: keras.layers.EinsumDense, axis: str | None) -> Iterator[Split]:
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
