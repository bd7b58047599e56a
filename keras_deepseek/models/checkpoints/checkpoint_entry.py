"""Entries of a checkpoint map, which convert between model variables and checkpoint tensors.

A family's `checkpoint_map.py` makes a list of entries from its model; the functions below cover the
usual cases. Reading and writing a folder both use that list.

    def checkpoint_entries(model):
        return [
            copied_entry(model.backbone.token_embedding.embeddings, "model.embed_tokens.weight"),
            kernel_entry(attention.output_projection.kernel, f"{prefix}.o_proj.weight",
                         num_input_axes=2),
            split_kernel_entry((attention.key_up.kernel, attention.value_up.kernel),
                               f"{prefix}.kv_b_proj.weight"),
            ...
        ]
"""

import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_private.layers import inner_layers, own_variables
from keras_deepseek.errors import InvalidInputError

Convert = Callable[[Sequence[Array]], Sequence[Any]]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class CheckpointEntry:
    """A conversion between one or more model variables and one or more checkpoint tensors.

    The two functions are inverse to each other. They only move numbers. Their arrays may have any
    dtype, such as bfloat16, or be views of a file. When a checkpoint is checked before it is read,
    only their shapes matter. Return views where you can (`.T`, `reshape`, slices): a process then
    reads only its part of a sharded variable.

    Args:
        tensors: The names of the tensors in the file.
        to_variables: Converts the arrays of `tensors` to those of `variables`. It may return a
            `StackedArrays` for one.
        to_tensors: Converts the arrays of `variables` to those of `tensors`.
        num_input_axes: The number of input axes, for kernels that the file stores as the weight of
            a `Linear`. `None` for other tensors.
        copies: Names under which a file may hold the first tensor again, such as `lm_head.weight`
            if the head is tied to the embedding. They are not written. A copy that is read must
            have the same numbers, and replaces the first tensor if that is missing.
    """

    variables: tuple[keras.Variable, ...]
    tensors: tuple[str, ...]
    to_variables: Convert
    to_tensors: Convert
    num_input_axes: int | None = None
    copies: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for variable in self.variables:
            if not isinstance(variable, keras.Variable):
                raise InvalidInputError(
                    f"The entry of {', '.join(map(repr, self.tensors))} must hold a variable, "
                    f"received a {type(variable).__name__}. With a LoRA `layer.kernel` is a sum: "
                    "use `own_variable(layer)`."
                )

    def tensor_shapes(self) -> list[Shape]:
        """Returns the shapes of the entry's tensors in a checkpoint, derived from its variables."""
        # A probe takes one byte of memory, as long as `to_tensors` makes views.
        probes = [np.broadcast_to(np.int8(0), variable.shape) for variable in self.variables]
        return [tuple(array.shape) for array in self.to_tensors(probes)]


def copied_entry(
    variable: keras.Variable, tensor: str, *, copies: Sequence[str] = ()
) -> CheckpointEntry:
    """Returns the checkpoint entry of a variable that is stored unchanged, such as an embedding."""
    return CheckpointEntry((variable,), (tensor,), list, list, copies=tuple(copies))


def reshaped_entry(variable: keras.Variable, tensor: str, shape: Shape) -> CheckpointEntry:
    """Returns the checkpoint entry of a variable that the file stores in another shape.

    The order of the values is the same. An example is the bias of an `EinsumDense` to heads:
    `(heads, dim)` here, `(heads * dim,)` there.
    """
    return CheckpointEntry(
        (variable,),
        (tensor,),
        lambda arrays: [arrays[0].reshape(variable.shape)],
        lambda arrays: [arrays[0].reshape(shape)],
    )


def kernel_entry(
    variable: keras.Variable, tensor: str, *, num_input_axes: int = 1
) -> CheckpointEntry:
    """Returns the checkpoint entry of the kernel of a `Dense` or an `EinsumDense`.

    The variable has the shape `(*inputs, *outputs)`. The file stores it as the weight of a PyTorch
    `Linear`, `(outputs, inputs)`, where several axes are flattened to one. `num_input_axes` is 2
    for a projection from heads, `(heads, dim, outputs)`.
    """
    return split_kernel_entry((variable,), tensor, num_input_axes=num_input_axes)


def split_kernel_entry(
    variables: Sequence[keras.Variable], tensor: str, *, num_input_axes: int = 1
) -> CheckpointEntry:
    """Returns the checkpoint entry of several kernels that one tensor joins on their last axis.

    Examples are `gate_up_proj`, from kernels of shape `(inputs, outputs)`, and `kv_b_proj`, from
    kernels of shape `(inputs, heads, dim)`; its rows in the file are sorted by head. The shapes of
    the variables differ only in the last axis.
    """
    inputs = tuple(variables[0].shape[:num_input_axes])
    outputs = tuple(variables[0].shape[num_input_axes:-1])
    widths = [variable.shape[-1] for variable in variables]
    bounds = np.cumsum(widths)[:-1]

    def to_variables(arrays: Sequence[Array]) -> list[Array]:
        # Axes are split before they are transposed, so that the result is a view of the file.
        kernel = arrays[0].T.reshape(*inputs, *outputs, sum(widths))
        return np.split(kernel, bounds, axis=-1)

    def to_tensors(arrays: Sequence[Array]) -> list[Array]:
        kernel = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)
        return [kernel.reshape(math.prod(inputs), -1).T]

    return CheckpointEntry(
        tuple(variables), (tensor,), to_variables, to_tensors, num_input_axes=num_input_axes
    )


def stacked_entry(
    variable: keras.Variable, tensors: Sequence[str], *, are_kernels: bool = True
) -> CheckpointEntry:
    """Returns the checkpoint entry of a variable that stacks one tensor for each expert.

    The variable is `(num_experts, ...)`. With `are_kernels`, each is transposed in the file, as the
    weight of a `Linear` is.
    """

    def transpose(array: Array) -> Array:
        return array.T if are_kernels else array

    return CheckpointEntry(
        (variable,),
        tuple(tensors),
        lambda arrays: [StackedArrays([transpose(array) for array in arrays])],
        lambda arrays: [transpose(array) for array in arrays[0]],
    )


def rename_tensors(
    entries: Iterable[CheckpointEntry],
    tensors: Collection[str],
    candidate_names: Callable[[str], Sequence[str]],
) -> list[CheckpointEntry]:
    """Renames the tensors of entries to the names that a checkpoint uses.

    The first of the candidate names that is among `tensors` is taken. If none is there, the name
    stays.
    """

    def find(name: str) -> str:
        return next(
            (candidate for candidate in candidate_names(name) if candidate in tensors), name
        )

    return [replace(entry, tensors=tuple(map(find, entry.tensors))) for entry in entries]


class StackedArrays:
    """A stack of arrays, as by `np.stack`, that is copied only where it is indexed.

    The arrays have one shape and dtype, such as parts of a memory-mapped file.
    """

    def __init__(self, arrays: Sequence[Array]) -> None:
        self.arrays = list(arrays)
        self.shape = (len(self.arrays), *self.arrays[0].shape)
        self.dtype = self.arrays[0].dtype

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: Any) -> Array:
        first, *inner_index = index if isinstance(index, tuple) else (index,)
        if isinstance(first, slice):
            chosen = [array[tuple(inner_index)] for array in self.arrays[first]]
            return np.stack(chosen)
        array: Array = self.arrays[operator.index(first)][tuple(inner_index)]
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.stack(self.arrays).astype(dtype or self.dtype, copy=False)


_COUNTER = re.compile(r"_\d+$")
_LORA_PREFIX = "lora_"


def path_entries(model: keras.Model) -> list[CheckpointEntry]:
    """Returns an entry for each weight of a built model, named by its path.

    Non-trainable weights are included. A path joins the names of the layers around a weight and its
    own name, as in `"backbone/stem_conv/kernel"`, without the name of the model. Names that Keras
    generated are numbered anew in each layer, so they do not depend on other layers in the process.
    Seeds are left out. A LoRA is left out too: it is added to its kernel.
    """
    weights = {id(weight) for weight in model.weights}
    paths: dict[str, keras.Variable] = {}
    visited_ids: set[int] = set()
    for path, variable in _walk(model):
        if id(variable) in visited_ids or id(variable) not in weights:
            continue
        if path in paths:
            raise InvalidInputError(
                f"{model.name!r} has two weights with the path {path!r}: {paths[path].path!r} of "
                f"shape {tuple(paths[path].shape)} and {variable.path!r} of shape "
                f"{tuple(variable.shape)}. Give their layers different names."
            )
        visited_ids.add(id(variable))
        paths[path] = variable
    if not paths:
        raise InvalidInputError(f"{model.name!r} has no weights. Build it, or call it once.")
    return [copied_entry(variable, path) for path, variable in paths.items()]


def _walk(layer: keras.Layer, prefix: str = "") -> Iterator[tuple[str, keras.Variable]]:
    variables = own_variables(layer)
    if getattr(layer, "lora_enabled", False):
        variables = [
            variable for variable in variables if not variable.name.startswith(_LORA_PREFIX)
        ]
    for name, variable in _name_all(variables, ["variable"] * len(variables)):
        yield prefix + name, variable
    # A layer that is also an attribute is listed twice.
    layers = list({id(inner_layer): inner_layer for inner_layer in inner_layers(layer)}.values())
    for name, inner in _name_all(layers, [type(inner_layer).__name__ for inner_layer in layers]):
        yield from _walk(inner, f"{prefix}{name}/")


def _name_all(objects: Sequence[Any], kinds: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yields objects with their names; names that Keras generated are renumbered."""
    counts: dict[str, count[int]] = {}
    for named, kind in zip(objects, kinds, strict=True):
        base = _COUNTER.sub("", named.name)
        if base.replace("_", "") != kind.replace("_", "").lower():
            yield named.name, named
            continue
        number = next(counts.setdefault(base, count()))
        yield (f"{base}_{number}" if number else base), named
