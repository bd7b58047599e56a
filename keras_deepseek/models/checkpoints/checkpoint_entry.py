"""Which tensors of a checkpoint some variables of a model come from, and go to.

A family's `checkpoint_map.py` makes a list of these from its model; the functions below are for the
usual cases. Reading and writing a folder both go by that list.

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
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models.checkpoints.stacked_arrays import StackedArrays

Convert = Callable[[Sequence[Array]], Sequence[Any]]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class CheckpointEntry:
    """Some variables of a model and the tensors that hold them in a checkpoint, many to many.

    The two functions are each other's inverse. They move numbers and compute nothing: what they are
    given may have any dtype (bfloat16 among them), or be a view of a file, and only its shape
    counts where a checkpoint is checked before it is read. Views (`.T`, `reshape`, slices) are
    best: where a variable is sharded, only what a process needs of them is then read.

    Args:
        variables: tuple of `keras.Variable`s.
        tensors: tuple of strings. The names of the tensors, as in the file.
        to_variables: Function from the arrays of `tensors` to those of `variables`. A
            `StackedArrays` may stand for one.
        to_tensors: Function from the arrays of `variables` to those of `tensors`.
        num_input_axes: integer or `None`. Of kernels that the file has as a `Linear`'s weight, how
            many axes are those of the inputs. Defaults to `None`: it has something else.
        copies: tuple of strings. Names under which a file may hold the first tensor once more, as
            `lm_head.weight` where the head is tied to the embedding. They are not written. One that
            is read must have the same numbers, and stands in for the first where that is missing.
            Defaults to `()`.

    Example:

    >>> import keras
    >>> bias = keras.Variable([0.0, 1.0])
    >>> entry = CheckpointEntry((bias,), ("proj.bias",), list, list)
    >>> entry.tensor_shapes()
    [(2,)]
    """

    variables: tuple[keras.Variable, ...]
    tensors: tuple[str, ...]
    to_variables: Convert
    to_tensors: Convert
    num_input_axes: int | None = None
    copies: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for each in self.variables:
            if not isinstance(each, keras.Variable):
                raise InvalidInputError(
                    f"The entry of {', '.join(map(repr, self.tensors))} must name a variable, and "
                    f"has a {type(each).__name__}. With a LoRA `layer.kernel` is a sum: take "
                    "`own_variable(layer)`."
                )

    def tensor_shapes(self) -> list[Shape]:
        """Returns the shapes that the tensors have in a checkpoint that fits the model."""
        # One byte in memory whatever the shape, as long as `to_tensors` makes views.
        probes = [np.broadcast_to(np.int8(0), variable.shape) for variable in self.variables]
        return [tuple(array.shape) for array in self.to_tensors(probes)]


def copied_entry(
    variable: keras.Variable, tensor: str, *, copies: Sequence[str] = ()
) -> CheckpointEntry:
    """Returns the entry of a variable that is as in the file: a scale, an embedding, a bias.

    Args:
        variable: `keras.Variable`.
        tensor: string.
        copies: strings. Names under which a file may hold it once more. Defaults to `()`.
    """
    return CheckpointEntry((variable,), (tensor,), list, list, copies=tuple(copies))


def reshaped_entry(variable: keras.Variable, tensor: str, shape: Shape) -> CheckpointEntry:
    """Returns the entry of a variable that has another shape in the file, in the same order.

    The bias of an `EinsumDense` to heads is one: `(heads, dim)` here, `(heads * dim,)` there.

    Args:
        variable: `keras.Variable`.
        tensor: string.
        shape: tuple of integers. That of the tensor in the file.
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
    """Returns the entry of the kernel of a `Dense` or an `EinsumDense`.

    The file has it as PyTorch's `Linear`: `(outputs, inputs)`. A kernel of several axes, to or from
    heads, is a matrix there.

    Args:
        variable: `keras.Variable` of the shape `(*inputs, *outputs)`.
        tensor: string.
        num_input_axes: integer. How many axes are those of the inputs: 2 for a projection from
            heads, `(heads, dim, outputs)`. Defaults to `1`.
    """
    return split_kernel_entry((variable,), tensor, num_input_axes=num_input_axes)


def split_kernel_entry(
    variables: Sequence[keras.Variable], tensor: str, *, num_input_axes: int = 1
) -> CheckpointEntry:
    """Returns the entry of kernels that the file has as one, side by side on their last axis.

    `gate_up_proj` is one, of `(inputs, outputs)` each, and so is `kv_b_proj`, of `(inputs, heads,
    dim)` each, whose rows in the file are one head after the other.

    Args:
        variables: `keras.Variable`s of the shape `(*inputs, *outputs)`, equal but in the last axis.
        tensor: string.
        num_input_axes: integer. How many axes are those of the inputs. Defaults to `1`.
    """
    inputs = tuple(variables[0].shape[:num_input_axes])
    outputs = tuple(variables[0].shape[num_input_axes:-1])
    widths = [variable.shape[-1] for variable in variables]
    bounds = np.cumsum(widths)[:-1]

    def to_variables(arrays: Sequence[Array]) -> list[Array]:
        # The axes are split before they change places, so that all of it is a view of the file.
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
    """Returns the entry of a variable that stacks one tensor an expert.

    Args:
        variable: `keras.Variable` of the shape `(num_experts, ...)`.
        tensors: strings. The tensors of the experts, in their order.
        are_kernels: boolean. Whether each is transposed in the file, as a `Linear`'s is. Defaults
            to `True`.
    """

    def turn(array: Array) -> Array:
        return array.T if are_kernels else array

    return CheckpointEntry(
        (variable,),
        tuple(tensors),
        lambda arrays: [StackedArrays([turn(array) for array in arrays])],
        lambda arrays: [turn(array) for array in arrays[0]],
    )


def respell(
    entries: Iterable[CheckpointEntry],
    tensors: Collection[str],
    spellings: Callable[[str], Sequence[str]],
) -> list[CheckpointEntry]:
    """Returns entries with the names that a checkpoint has for their tensors.

    Args:
        entries: `CheckpointEntry`s, by the names that are written.
        tensors: The names of all tensors in the checkpoint.
        spellings: Function from a name that is written to those that it goes by, the first of which
            that is there is taken. Where none is, the name stays.
    """

    def find(name: str) -> str:
        return next((each for each in spellings(name) if each in tensors), name)

    return [replace(entry, tensors=tuple(map(find, entry.tensors))) for entry in entries]
