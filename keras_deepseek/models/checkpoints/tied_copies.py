"""Tensors that a checkpoint holds twice, as the head of a model that is tied to its embedding.

`read_weights` asks here which of the two is read, and whether they are the same.
"""

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from keras_deepseek.errors import CheckpointError
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry

_PIECE_BYTES = 2**24  # Compared at once: the numbers of a large table are never all in memory.


def stand_in(entry: CheckpointEntry, tensors: Collection[str]) -> CheckpointEntry:
    """Returns an entry whose first tensor is a copy, where a checkpoint has that alone.

    Args:
        entry: `CheckpointEntry`.
        tensors: The names of all tensors in the checkpoint.
    """
    first, *others = entry.tensors
    found = [name for name in entry.copies if name in tensors]
    if first in tensors or not found:
        return entry
    return replace(entry, tensors=(found[0], *others), copies=tuple(found[1:]))


def check_copies(
    entries: Iterable[CheckpointEntry],
    tensors: Collection[str],
    read: Callable[[CheckpointEntry, str], Any],
) -> None:
    """Says where a tensor and its copy have other numbers, so that the model would not be theirs.

    Args:
        entries: `CheckpointEntry`s of the model.
        tensors: The names of all tensors in the checkpoint.
        read: Function of an entry and a name. It returns the numbers.

    Raises:
        CheckpointError: They have. The message names both.
    """
    for entry in entries:
        for name in entry.copies:
            if name in tensors and not _are_equal(read(entry, entry.tensors[0]), read(entry, name)):
                raise CheckpointError(
                    f"{name!r} and {entry.tensors[0]!r} are one tensor where the config has "
                    "`tie_word_embeddings`, and have other numbers in the checkpoint; nothing was "
                    "loaded. To read both give tie_word_embeddings=False to `from_preset`. If "
                    f"{name!r} was only left behind, take it out of the files."
                )


def _are_equal(first: Any, second: Any) -> bool:
    rows = max(1, _PIECE_BYTES // (4 * max(1, math.prod(first.shape[1:]))))
    return all(
        np.array_equal(first[begin : begin + rows], second[begin : begin + rows])
        for begin in range(0, len(first), rows)
    )
