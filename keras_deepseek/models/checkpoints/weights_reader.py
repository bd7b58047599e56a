"""Loading of checkpoint tensors into model variables, one checkpoint entry at a time.

The variables are made without random initial values, which the checkpoint would overwrite.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.temporary_attributes import temporary_attributes
from keras_deepseek.errors import CheckpointError, InvalidInputError
from keras_deepseek.layers.initializers import draws_random_numbers
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry
from keras_deepseek.models.checkpoints.load_display import LoadDisplay
from keras_deepseek.models.checkpoints.mapped_weights import MappedWeights
from keras_deepseek.models.checkpoints.safetensors_file import MappedFiles, StoredTensor
from keras_deepseek.models.checkpoints.scaled_tensor import (
    DEFAULT_BLOCK_SHAPE,
    ScaledBlocks,
    ScaledTensor,
)
from keras_deepseek.models.checkpoints.weights_folder import WeightsFolder


def read_weights(
    weights: WeightsFolder,
    entries: Iterable[CheckpointEntry],
    *,
    ignored_tensors: Sequence[str] = (),
    block_shape: tuple[int, int] = DEFAULT_BLOCK_SHAPE,
    is_shown: bool = False,
    mapped: MappedWeights | None = None,
    finish_entry: Callable[[CheckpointEntry], None] = lambda _: None,
) -> None:
    """Loads a checkpoint into a model's variables, after checking all names and shapes.

    `ignored_tensors` are patterns. Variables that can be views of the files are added to `mapped`,
    if it is given, and others are copied. `finish_entry` is called after each entry, which is then
    forgotten, so that a variable that it replaces is freed. If a `CheckpointError` is raised, no
    variable has changed.
    """
    entries = [use_present_copy(entry, weights.names) for entry in entries]
    weights.check(entries, ignored_tensors, block_shape)
    stored = [_find_tensors(weights, entry, block_shape) for entry in entries]
    total = sum(part.num_bytes for tensors in stored for tensor in tensors for part in tensor.parts)
    _check_copies(weights, entries, block_shape)
    unread = deque(zip(entries, stored, strict=True))
    del entries
    with (
        MappedFiles() as files,
        LoadDisplay(f"Loading {weights.path.name}", total, is_shown=is_shown) as advance,
    ):
        while unread:
            entry, tensors = unread.popleft()
            is_viewed = _fill(entry, tensors, files, mapped)
            finish_entry(entry)
            for part in (part for tensor in tensors for part in tensor.parts):
                if not is_viewed:
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


def _fill(
    entry: CheckpointEntry,
    tensors: Sequence[StoredTensor | ScaledTensor],
    files: MappedFiles,
    mapped: MappedWeights | None,
) -> bool:
    """Sets the variables of an entry; returns True if one of them is a view of a file."""
    arrays: list[Any] = [tensor.read(files) for tensor in tensors]
    is_viewed = False
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
        first = tensors[0]
        # What was computed from the file is no part of it.
        is_part = isinstance(source, np.ndarray) and np.may_share_memory(source, arrays[0])
        if (
            mapped is not None
            and isinstance(first, StoredTensor)
            and is_part
            and mapped.add(variable, source, files.file_of(first))
        ):
            is_viewed = True
        else:
            backend.current().compute.assign_array(variable, source)
    return is_viewed


_PIECE_BYTES = 2**24  # Compared at once, so that a large table is never in memory as a whole.


def use_present_copy(entry: CheckpointEntry, tensors: Collection[str]) -> CheckpointEntry:
    """Returns an entry that reads a tied copy of its first tensor if only the copy is present."""
    first, *other_tensors = entry.tensors
    copies = [name for name in entry.copies if name in tensors]
    if first in tensors or not copies:
        return entry
    return replace(entry, tensors=(copies[0], *other_tensors), copies=tuple(copies[1:]))


def check_copies(
    entries: Iterable[CheckpointEntry],
    tensors: Collection[str],
    read: Callable[[CheckpointEntry, str], Any],
) -> None:
    """Raises a `CheckpointError` if a tensor and its tied copy hold different values."""
    for entry in entries:
        for name in entry.copies:
            if name in tensors and not _are_equal(read(entry, entry.tensors[0]), read(entry, name)):
                raise CheckpointError(
                    f"{name!r} and {entry.tensors[0]!r} must be equal, because the config has "
                    "`tie_word_embeddings`, and they differ in the checkpoint. Nothing was loaded. "
                    "To read both, give tie_word_embeddings=False to `from_preset`. If "
                    f"{name!r} is only a leftover, remove it from the files."
                )


def _are_equal(first: Any, second: Any) -> bool:
    rows = max(1, _PIECE_BYTES // (4 * max(1, math.prod(first.shape[1:]))))
    return all(
        np.array_equal(first[begin : begin + rows], second[begin : begin + rows])
        for begin in range(0, len(first), rows)
    )


_lock = threading.RLock()


@contextmanager
def unset_variables() -> Iterator[list[keras.Variable]]:
    """A context manager that makes random initializers of this thread return zeros.

    It yields the list of the variables that they filled. Variables with another initializer, such
    as ones or a table, are initialized as usual and are not in the list.
    """
    variables: list[keras.Variable] = []
    thread = threading.get_ident()
    add_weight = keras.Layer.add_weight
    unset = backend.current().compute.unset_initializer()

    def add_zeros(
        layer: keras.Layer, shape: Any = None, initializer: Any = None, *args: Any, **kwargs: Any
    ) -> keras.Variable:
        is_here = threading.get_ident() == thread
        if not (is_here and draws_random_numbers(initializer)):
            return add_weight(layer, shape, initializer, *args, **kwargs)
        variable = add_weight(layer, shape, unset, *args, **kwargs)
        variables.append(variable)
        return variable

    # Without a lock, two threads at once could leave the patched method in place for ever.
    with _lock, temporary_attributes(keras.Layer, add_weight=add_zeros):
        yield variables
