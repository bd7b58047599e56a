"""A large array in pieces along its first axis, so that no second copy of it has to be made."""

import math
from collections.abc import Iterator
from typing import Any

PIECE_BYTES = 2**23


def cut_pieces(shape: tuple[int, ...], item_bytes: int) -> Iterator[Any]:
    """Yields the indices that read an array piece by piece.

    Args:
        shape: tuple of integers. That of the array.
        item_bytes: integer. The bytes of a number.
    """
    if not shape:
        yield ()
        return
    row_bytes = max(math.prod(shape[1:]) * item_bytes, 1)
    rows = max(PIECE_BYTES // row_bytes, 1)
    for begin in range(0, shape[0], rows):
        yield slice(begin, min(begin + rows, shape[0]))
