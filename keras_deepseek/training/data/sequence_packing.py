"""Packing of documents of different lengths into rows of one length, with almost no padding."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.data.token_features import Features, check_padding, read_features

Piece = tuple[int, int, int]  # A document, its first token, and the end, which is not included.


def pack_sequences(
    features: Features,
    length: int,
    *,
    when_longer: Literal["refuse", "split", "truncate"] = "refuse",
    padding: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> dict[str, Array]:
    """Packs documents into rows, several in each, by best fit from the longest down.

    Choose it over padding if lengths differ and the model is trained on fixed shapes: the work for
    padding goes into tokens. Besides the features it returns for each token

    | name | meaning |
    |---|---|
    | `"segment_ids"` | the number of the token's document in its row, from 1; 0 for padding |
    | `"positions"` | the number of the token in its document, from 0 |

    so that no document sees another. For an attention layer with an `attention_mask`:

    ```
    attention_mask = ops.equal(segment_ids[:, :, None], segment_ids[:, None, :])
    ```

    The result is plain NumPy arrays, one for each input of the model.

    Args:
        features: dict. For each name one array for each document, of shape `(num_tokens, ...)`. All
            features have the same lengths, such as token IDs and their targets.
        length: integer. The number of tokens in a row.
        when_longer: `"refuse"`, `"split"` or `"truncate"`. For a document of more than `length`
            tokens: an error; several documents, whose positions each begin at 0; or its beginning.
            Defaults to `"refuse"`.
        padding: dict. The padding value of a feature, as in `{"targets": -100}`. Defaults to
            `None`: 0.
        seed: integer. The seed of a random order of the rows. Defaults to `None`: rows of long
            documents come first.

    Returns:
        A dict of arrays of shape `(num_rows, length, ...)`: the features in their own dtype, and
            `"segment_ids"` and `"positions"` in int32.

    Raises:
        InvalidInputError: There is no document, features differ in their lengths or have one of the
            two names, `length` is not positive, or a document is longer than `length` and
            `when_longer="refuse"`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.training import pack_sequences
    >>> documents = [np.array([5, 6, 7]), np.array([8, 9]), np.array([3])]
    >>> packed = pack_sequences({"token_ids": documents}, length=4)
    >>> packed["token_ids"].tolist()
    [[5, 6, 7, 3], [8, 9, 0, 0]]
    >>> packed["segment_ids"].tolist()
    [[1, 1, 1, 2], [1, 1, 0, 0]]
    >>> packed["positions"].tolist()
    [[0, 1, 2, 0], [0, 1, 0, 0]]

    Reference:

    - [Efficient Sequence Packing without Cross-contamination (Krell et al.,
      2021)](https://arxiv.org/abs/2107.02027)
    """
    length = check_integer("length", length)
    if seed is not None:
        seed = check_integer("seed", seed, minimum=0)
    arrays, lengths = read_features(features)
    reserved = sorted({"segment_ids", "positions"} & set(arrays))
    if reserved:
        raise InvalidInputError(
            f"Received a feature named {reserved[0]!r}, which is the name of a result. Rename it."
        )
    padding = check_padding(padding, arrays)
    rows = _fit(list(_cut(lengths, length, when_longer)), length)
    if seed is not None:
        np.random.default_rng(seed).shuffle(rows)
    packed = {
        name: np.full(
            (len(rows), length, *documents[0].shape[1:]),
            padding.get(name, 0),
            np.result_type(*documents),  # Holds the numbers of each document.
        )
        for name, documents in arrays.items()
    }
    packed["segment_ids"] = np.zeros((len(rows), length), "int32")
    packed["positions"] = np.zeros((len(rows), length), "int32")
    for row, pieces in enumerate(rows):
        start = 0
        for number, (document, first, last) in enumerate(pieces, 1):
            tokens = slice(start, start + last - first)
            for name, documents in arrays.items():
                packed[name][row, tokens] = documents[document][first:last]
            packed["segment_ids"][row, tokens] = number
            packed["positions"][row, tokens] = np.arange(last - first)
            start = tokens.stop
    return packed


def _cut(lengths: Sequence[int], length: int, when_longer: str) -> Iterator[Piece]:
    """Yields the pieces of documents to pack, with too long documents cut or split."""
    if when_longer not in ("refuse", "split", "truncate"):
        raise InvalidInputError(
            f"`when_longer` must be 'refuse', 'split' or 'truncate', received {when_longer!r}."
        )
    for document, num_tokens in enumerate(lengths):
        if num_tokens > length and when_longer == "refuse":
            raise InvalidInputError(
                f"Document {document} has {num_tokens} tokens, but a row has {length}. Pass a "
                "larger `length`, or when_longer='split' or 'truncate'."
            )
        end = min(num_tokens, length) if when_longer == "truncate" else num_tokens
        for first in range(0, end, length):
            yield document, first, min(first + length, end)


def _fit(pieces: list[Piece], length: int) -> list[list[Piece]]:
    """Assigns pieces to rows, and returns the pieces of each row.

    From the longest down, each goes to the fullest row with room.
    """
    pieces.sort(key=lambda piece: piece[1] - piece[2])  # Minus the size: the longest first.
    rows: list[list[Piece]] = []
    by_room: dict[int, list[int]] = {}  # The rows with room for exactly that number of tokens.
    rooms: list[int] = []  # The keys of `by_room` that have rows, in ascending order.
    for piece in pieces:
        size = piece[2] - piece[1]
        at = bisect_left(rooms, size)  # The least room that is enough.
        if at == len(rooms):  # No row has enough.
            row, room = len(rows), length
            rows.append([])
        else:
            room = rooms[at]
            row = by_room[room].pop()
            if not by_room[room]:
                del rooms[at]
        rows[row].append(piece)
        remaining = room - size
        if remaining:
            if not by_room.setdefault(remaining, []):
                insort(rooms, remaining)
            by_room[remaining].append(row)
    return rows
