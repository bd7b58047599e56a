"""Checks of token ids from any array library, before a `Tokenizer` uses them."""

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import InvalidInputError

NUM_TOKEN_IDS = 2**32
"""The number of ids in the `tokenizers` library, which stores them as unsigned 32-bit integers."""


def read_rows(rows: Any) -> list[Array]:
    """Checks lists of token ids, and returns them as integer arrays whose values fit int32."""
    if not np.iterable(rows) or isinstance(rows, str | bytes | Mapping):
        raise InvalidInputError(f"Rows must be lists of token ids, received {rows!r}.")
    return [_read_row(row) for row in rows]


def _read_row(row: Any) -> Array:
    try:
        ids = np.asarray(row)
        fits = ids.ndim == 1 and (ids.size == 0 or (ids.dtype.kind in "iu" and _is_int32(ids)))
    except (TypeError, ValueError):  # Lists of different lengths can't be an array.
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
    """Converts a token id, such as a scalar tensor, to a Python integer."""
    try:
        number = operator.index(token_id)
    except TypeError:
        number = -1
    if isinstance(token_id, bool) or not 0 <= number < NUM_TOKEN_IDS:
        raise InvalidInputError(
            f"A token id must be an integer of at least 0, received {token_id!r}. Remove values "
            "that are not tokens, such as the targets that a loss ignores."
        )
    return number
