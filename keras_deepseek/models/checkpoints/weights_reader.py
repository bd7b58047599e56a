"""Loading of checkpoint tensors into model variables, one checkpoint entry at a time."""

from collections.abc import Sequence
from typing import Any

from keras_deepseek import backend
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry
from keras_deepseek.models.checkpoints.load_display import LoadDisplay
from keras_deepseek.models.checkpoints.safetensors_file import MappedFiles, StoredTensor
from keras_deepseek.models.checkpoints.scaled_blocks import ScaledBlocks
from keras_deepseek.models.checkpoints.scaled_tensor import DEFAULT_BLOCK_SHAPE, ScaledTensor
from keras_deepseek.models.checkpoints.tied_copies import check_copies, use_present_copy
from keras_deepseek.models.checkpoints.weights_folder import WeightsFolder


def read_weights(
    weights: WeightsFolder,
    entries: Sequence[CheckpointEntry],
    *,
    ignored_tensors: Sequence[str] = (),
    block_shape: tuple[int, int] = DEFAULT_BLOCK_SHAPE,
    is_shown: bool = False,
) -> None:
    """Loads a checkpoint into a model's variables, after checking all names and shapes.

    `ignored_tensors` are patterns. If a `CheckpointError` is raised, no variable has changed.
    """
    entries = [use_present_copy(entry, weights.names) for entry in entries]
    weights.check(entries, ignored_tensors, block_shape)
    stored = [_find_tensors(weights, entry, block_shape) for entry in entries]
    total = sum(part.num_bytes for tensors in stored for tensor in tensors for part in tensor.parts)
    _check_copies(weights, entries, block_shape)
    with (
        MappedFiles() as files,
        LoadDisplay(f"Loading {weights.path.name}", total, is_shown=is_shown) as advance,
    ):
        for entry, tensors in zip(entries, stored, strict=True):
            _fill(entry, [tensor.read(files) for tensor in tensors])
            for part in (part for tensor in tensors for part in tensor.parts):
                files.release(part)
                advance(part.num_bytes)


def _find_tensors(
    weights: WeightsFolder, entry: CheckpointEntry, block_shape: tuple[int, int]
) -> list[StoredTensor | ScaledTensor]:
    return [_find_tensor(weights, entry, name, block_shape) for name in entry.tensors]


def _find_tensor(
    weights: WeightsFolder, entry: CheckpointEntry, name: str, block_shape: tuple[int, int]
) -> StoredTensor | ScaledTensor:
    dtype = entry.variables[0].dtype
    return weights.find_scaled(name, dtype, block_shape) or weights.tensors[name]


def _check_copies(
    weights: WeightsFolder, entries: Sequence[CheckpointEntry], block_shape: tuple[int, int]
) -> None:
    with MappedFiles() as files:
        check_copies(
            entries,
            weights.names,
            lambda entry, name: _find_tensor(weights, entry, name, block_shape).read(files),
        )


def _fill(entry: CheckpointEntry, arrays: list[Any]) -> None:
    if len(arrays) == 1:  # Several are computed one at a time, when they are read.
        arrays = [array[:] if isinstance(array, ScaledBlocks) else array for array in arrays]
    sources = entry.to_variables(arrays)
    for variable, source in zip(entry.variables, sources, strict=True):
        if tuple(source.shape) != tuple(variable.shape):
            raise InvalidInputError(
                f"The checkpoint map makes an array of shape {tuple(source.shape)} from "
                f"{entry.tensors}, expected {tuple(variable.shape)} for the variable "
                f"{variable.path!r}."
            )
        backend.current().compute.assign_array(variable, source)
