"""Token ids that a `Tokenizer` is given, of whichever library: checked before it goes by them."""

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import InvalidInputError

NUM_TOKEN_IDS = 2**32
"""The `tokenizers` library has them in 32 bits, without a sign."""


def read_rows(rows: Any) -> list[Array]:
    """Returns rows of integers that have room in int32.

    Args:
        rows: lists or arrays of integers.

    Raises:
        InvalidInputError: One is something else, or has an integer of more bits.
    """
    if not np.iterable(rows) or isinstance(rows, str | bytes | Mapping):
        raise InvalidInputError(f"Rows must be lists of token ids, received {rows!r}.")
    return [_read_row(row) for row in rows]


def _read_row(row: Any) -> Array:
    try:
        ids = np.asarray(row)
        fits = ids.ndim == 1 and (ids.size == 0 or (ids.dtype.kind in "iu" and _is_int32(ids)))
    except (TypeError, ValueError):  # Lists of several lengths are no array.
        fits = False
    if not fits:
        raise InvalidInputError(
            f"A row must be a list of token ids, integers of 32 bits; received {row!r}."
        )
    return ids


def _is_int32(ids: Array) -> bool:
    bounds = np.iinfo("int32")
    return bool(bounds.min <= ids.min() and ids.max() <= bounds.max)


def read_token_id(token_id: Any) -> int:
    """Returns a token id as an integer of Python's.

    Args:
        token_id: integer, or a tensor that is one.

    Raises:
        InvalidInputError: It is negative, too large, or no integer.
    """
    try:
        found = operator.index(token_id)
    except TypeError:
        found = -1
    if isinstance(token_id, bool) or not 0 <= found < NUM_TOKEN_IDS:
        raise InvalidInputError(
            f"A token id must be an integer from 0 on, received {token_id!r}. Take out what stands "
            "for no token, such as the targets that a loss passes over."
        )
    return found
