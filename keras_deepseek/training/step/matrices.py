"""The matrices in the weights of a model: how each layer multiplies by its kernel."""

import fnmatch
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_deepseek.backend.keras_private.layers import (
    flatten_layers,
    output_layers,
    own_variables,
)
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.heads.vocabulary_head import VocabularyHead
from keras_deepseek.layers.moe.expert_kernels import ExpertKernels
from keras_deepseek.layers.moe.expert_router import ExpertRouter
from keras_deepseek.layers.residual.manifold_constrained_hyper_connections import (
    ManifoldConstrainedHyperConnections,
)
from keras_deepseek.layers.residual.residual_stream_collapse import ResidualStreamCollapse

_logger = logging.getLogger(__name__)

ADAMW = "adamw"
"""In place of axes: the weight is not updated as matrices, but by AdamW."""

_PARTS = "src"  # Stack, rows and columns: the axes of the matrices in a weight.
_DENSE = (
    keras.layers.Dense,
    ExpertRouter,
    ManifoldConstrainedHyperConnections,
    ResidualStreamCollapse,
)
_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
_OUTPUTS = (keras.layers.Dense, keras.layers.EinsumDense, *_CONVOLUTIONS, *_TRANSPOSED)
_NO_MATRIX = re.compile("bias|embedding|position|lora_")  # In paths of weights for AdamW.


def find_matrices(
    model: keras.Model, overrides: Mapping[str, str], *, split_heads: bool
) -> dict[str, str]:
    """Returns the axes of the matrices in each trainable weight of a model, by its path.

    Axes are a string with one letter for each axis of the weight: `"s"` counts matrices, `"r"` is
    of their rows and `"c"` of their columns. `ADAMW` stands for a weight that is none. Weights with
    several axes that no rule knows are logged. `overrides` has axes by patterns of paths.
    """
    if not isinstance(model, keras.Model) or not model.built:
        raise InvalidInputError(
            f"Muon reads how the layers of a built keras.Model use their weights; received "
            f"{model!r}. Build the model, or call it on a batch, first."
        )
    axes_by_id = _axes_by_layer(model, split_heads)
    matrices: dict[str, str] = {}
    unknown = []
    for variable in model.trainable_variables:
        path, axes = variable.path, axes_by_id.get(id(variable))
        patterns = [pattern for pattern in overrides if fnmatch.fnmatch(path, pattern)]
        if patterns:
            axes = overrides[patterns[0]]
        elif axes is None and len(variable.shape) > 1 and not _NO_MATRIX.search(path):
            unknown.append(f"{path} {tuple(variable.shape)}")
        axes = axes or ADAMW
        check_axes(path, axes, variable.shape)
        if matrices.setdefault(path, axes) != axes:
            raise InvalidInputError(
                f"Two weights have the path {path!r}, and only one of them is a matrix: give the "
                f"layers of {model.name!r} different names."
            )
    for pattern in overrides:
        if not fnmatch.filter(matrices, pattern):
            raise InvalidInputError(
                f"matrices={{{pattern!r}: ...}} names no trainable weight of {model.name!r}. "
                f"Weights have paths such as {next(iter(matrices), None)!r}; a pattern may have *."
            )
    if set(matrices.values()) <= {ADAMW}:
        raise InvalidInputError(
            f"No trainable weight of {model.name!r} is a matrix inside the model, and embeddings, "
            "output layers, biases and LoRAs are left to AdamW. Use keras.optimizers.AdamW."
        )
    if unknown:
        _logger.warning(
            "AdamW updates %s: Muon does not know how their layers multiply by them. Say it by "
            "Muon.for_model(model, matrices={'path': 'rc'}), or 'adamw'.",
            ", ".join(unknown),
        )
    return matrices


def check_axes(path: str, axes: Any, shape: Sequence[int]) -> None:
    """Raises an error if a text does not say which axes of a weight are those of matrices."""
    is_text = isinstance(axes, str)
    if is_text and (
        axes == ADAMW
        or (len(axes) == len(shape) and set(axes) <= set(_PARTS) and {"r", "c"} <= set(axes))
    ):
        return
    raise InvalidInputError(
        f"The axes of {path!r}, of shape {tuple(shape)}, must be 'adamw', or one letter for each "
        "axis: 's' for those that count matrices, 'r' for rows and 'c' for columns, with at least "
        f"one 'r' and one 'c', as in 'src' for (experts, rows, columns); received {axes!r}."
    )


def _axes_by_layer(model: keras.Model, split_heads: bool) -> dict[int, str]:
    """Returns the axes of the weights that layers of known classes have, by id of the weight."""
    axes_by_id: dict[int, str] = {}
    output_ids = {id(layer) for layer in output_layers(model)}
    for layer in flatten_layers(model):
        is_output = id(layer) in output_ids and isinstance(layer, _OUTPUTS)
        is_left_out = is_output or isinstance(layer, keras.layers.Embedding | VocabularyHead)
        for variable in own_variables(layer):
            axes = _find_axes(layer, variable.name, len(variable.shape), split_heads)
            if is_left_out:
                axes_by_id[id(variable)] = ADAMW
            elif axes is not None:
                axes_by_id.setdefault(id(variable), axes)
    return axes_by_id


def _find_axes(layer: keras.Layer, name: str, rank: int, split_heads: bool) -> str | None:
    """Returns the axes of a layer's weight, or `None` if it is none or the layer is not known."""
    if isinstance(layer, ExpertKernels) and name == "kernel":
        return "src"
    if isinstance(layer, keras.layers.EinsumDense) and name == "kernel":
        return _find_einsum_axes(layer.equation, split_heads)
    is_convolution = isinstance(layer, _CONVOLUTIONS) and layer.groups == 1 and name == "kernel"
    if is_convolution or (isinstance(layer, _SEPARABLE) and name == "pointwise_kernel"):
        return "r" * (rank - 1) + "c"
    if isinstance(layer, _TRANSPOSED) and name == "kernel":  # Of shape (..., filters, channels).
        return "c" * (rank - 1) + "r"
    return "rc" if isinstance(layer, _DENSE) and name == "kernel" else None


def _find_einsum_axes(equation: str, split_heads: bool) -> str | None:
    """Returns the axes of the kernel of an `EinsumDense`, or `None` if it multiplies no vector.

    A letter in inputs, kernel and outputs counts matrices. Letters of the kernel that are only in
    the inputs are rows, and those only in the outputs are columns. Of several columns all but the
    last are heads (`h` in `btd,dhk->bthk`): with `split_heads` they count matrices.
    """
    inputs, kernel, outputs = equation.replace("->", ",").split(",")
    produced = [letter for letter in kernel if letter not in inputs]
    heads = set(produced[:-1]) if split_heads else set()
    axes = "".join(
        "s"
        if letter in heads or (letter in inputs and letter in outputs)
        else ("r" if letter in inputs else "c")
        for letter in kernel
    )
    return axes if {"r", "c"} <= set(axes) else None


def count_matrices(shape: Sequence[int], axes: str) -> tuple[int, int, int]:
    """Returns the number of matrices in a weight, and the number of their rows and columns."""
    number, rows, columns = (
        math.prod(size for size, letter in zip(shape, axes, strict=True) if letter == part)
        for part in _PARTS
    )
    return number, rows, columns


def to_matrices(tensor: Any, axes: str) -> Any:
    """Returns the matrices in a tensor, in its last two axes. The first axis counts them, if any.

    Operations that would change nothing are left out: PyTorch takes as long for them as for others.
    """
    order, sizes = _order(axes), count_matrices(tensor.shape, axes)
    if order != sorted(order):
        tensor = ops.transpose(tensor, order)
    shape = sizes if "s" in axes else sizes[1:]
    return tensor if tuple(tensor.shape) == shape else ops.reshape(tensor, shape)


def from_matrices(matrices: Any, shape: Sequence[int], axes: str) -> Any:
    """Returns the tensor of a shape of which `to_matrices` made some matrices."""
    order = _order(axes)
    ordered_shape = tuple(shape[axis] for axis in order)
    if tuple(matrices.shape) != ordered_shape:
        matrices = ops.reshape(matrices, ordered_shape)
    if order == sorted(order):
        return matrices
    return ops.transpose(matrices, sorted(range(len(order)), key=order.__getitem__))


def _order(axes: str) -> list[int]:
    return sorted(range(len(axes)), key=lambda axis: _PARTS.index(axes[axis]))
