"""Tensors that a checkpoint stores twice, such as an output head tied to the embedding."""

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from keras_deepseek.errors import CheckpointError
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry

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
