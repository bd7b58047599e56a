"""From the files of a checkpoint into the variables of a model, an entry at a time."""

from collections.abc import Sequence
from typing import Any

from keras_deepseek import backend
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry
from keras_deepseek.models.checkpoints.load_display import LoadDisplay
from keras_deepseek.models.checkpoints.safetensors_file import MappedFiles, StoredTensor
from keras_deepseek.models.checkpoints.scaled_blocks import ScaledBlocks
from keras_deepseek.models.checkpoints.scaled_tensor import DEFAULT_BLOCK_SHAPE, ScaledTensor
from keras_deepseek.models.checkpoints.tied_copies import check_copies, stand_in
from keras_deepseek.models.checkpoints.weights_folder import WeightsFolder


def read_weights(
    weights: WeightsFolder,
    entries: Sequence[CheckpointEntry],
    *,
    ignored_tensors: Sequence[str] = (),
    block_shape: tuple[int, int] = DEFAULT_BLOCK_SHAPE,
    is_shown: bool = False,
) -> None:
    """Fills the variables of a model; all names and shapes are checked before the first.

    Args:
        weights: `WeightsFolder`.
        entries: `CheckpointEntry`s of the model.
        ignored_tensors: strings. Patterns of names that may be there and are passed over.
        block_shape: tuple of two integers. The blocks that float8 tensors have scales of. Defaults
            to `(128, 128)`.
        is_shown: boolean. Whether a bar shows how far it has come. Defaults to `False`.

    Raises:
        CheckpointError: The files are torn, hold other tensors than the model takes, or one that
            the model has once twice, with other numbers. No variable has changed.
    """
    entries = [stand_in(entry, weights.names) for entry in entries]
    weights.check(entries, ignored_tensors, block_shape)
    stored = [_find_tensors(weights, entry, block_shape) for entry in entries]
    total = sum(part.num_bytes for tensors in stored for each in tensors for part in _parts(each))
    _check_copies(weights, entries, block_shape)
    with (
        MappedFiles() as files,
        LoadDisplay(f"Loading {weights.path.name}", total, is_shown=is_shown) as advance,
    ):
        for entry, tensors in zip(entries, stored, strict=True):
            _fill(entry, [_read(files, each) for each in tensors])
            for part in (part for each in tensors for part in _parts(each)):
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
            lambda entry, name: _read(files, _find_tensor(weights, entry, name, block_shape)),
        )


def _parts(tensor: StoredTensor | ScaledTensor) -> tuple[StoredTensor, ...]:
    return tensor.parts if isinstance(tensor, ScaledTensor) else (tensor,)


def _read(files: MappedFiles, tensor: StoredTensor | ScaledTensor) -> Any:
    return tensor.read(files) if isinstance(tensor, ScaledTensor) else files.read(tensor)


def _fill(entry: CheckpointEntry, arrays: list[Any]) -> None:
    if len(arrays) == 1:  # Of several, each is computed as it is read.
        arrays = [array[:] if isinstance(array, ScaledBlocks) else array for array in arrays]
    sources = entry.to_variables(arrays)
    for variable, source in zip(entry.variables, sources, strict=True):
        if tuple(source.shape) != tuple(variable.shape):
            raise InvalidInputError(
                f"The checkpoint map makes {tuple(source.shape)} of {entry.tensors}, and the "
                f"variable {variable.path!r} has the shape {tuple(variable.shape)}."
            )
        backend.current().compute.assign_array(variable, source)
