"""Functions that split users' item histories and pad them for `fit` and `evaluate`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError

_ALL_PARTS = 3
"""The length of a history with one item each for training, validation and test."""


@dataclass(frozen=True)
class Interactions:
    """Histories of the items of users, in order of time.

    Choose it to prepare your own data for a `SequentialRecommender`.

    Args:
        histories: sequence of integer arrays, one for each user, oldest item first. Item ids start
            at 1.
        num_items: integer. Number of items.
        item_names: sequence. The original names of item 1, item 2 and so on. Defaults to `()`: no
            names.
        user_names: sequence. The original name of the user of each history. Defaults to `()`.

    Raises:
        InvalidInputError: There is no history, one is not a sequence of integers, or an item is not
            in 1 to `num_items`.

    Example:

    >>> from keras_deepseek.models import Interactions
    >>> split = Interactions([[1, 2, 3, 4], [2, 3]], num_items=4).leave_last_out()
    >>> [history.tolist() for history in split.histories], split.test_data(3)[1].tolist()
    ([[1, 2], [2, 3]], [4])
    """

    histories: Sequence[Any]
    num_items: int
    item_names: Sequence[Any] = ()
    user_names: Sequence[Any] = ()

    def __post_init__(self) -> None:
        histories = read_histories(self.histories, check_integer("num_items", self.num_items))
        if not histories:
            raise InvalidInputError("`histories` must have at least one history, received none.")
        object.__setattr__(self, "histories", histories)

    def leave_last_out(self) -> "LeaveLastOut":
        """Returns a split that tests on each user's last item and validates on the one before it.

        Users with fewer than three items are used only for training.
        """
        whole = [len(history) >= _ALL_PARTS for history in self.histories]
        return LeaveLastOut(
            num_items=self.num_items,
            histories=[
                history[:-2] if is_whole else history
                for history, is_whole in zip(self.histories, whole, strict=True)
            ],
            held_out=[
                history for history, is_whole in zip(self.histories, whole, strict=True) if is_whole
            ],
        )


@dataclass(frozen=True)
class LeaveLastOut:
    """Histories without their last two items for training, and whole histories for evaluation.

    `Interactions.leave_last_out` makes it. Choose the constructor if your data is split already.

    Args:
        num_items: integer. Number of items.
        histories: list of integer arrays. The histories for training.
        held_out: list of integer arrays. The whole histories of users to evaluate on.

    Example:

    >>> from keras_deepseek.models import LeaveLastOut
    >>> split = LeaveLastOut(9, histories=[[1, 2, 3]], held_out=[[1, 2, 3, 4, 5]])
    >>> split.train_inputs(3)["targets"].tolist()
    [[0, 2, 3]]
    """

    num_items: int
    histories: list[Any]
    held_out: list[Any]

    def item_counts(self) -> Array:
        """Returns the number of occurrences of each item in the training data, item 1 first."""
        items = np.concatenate([np.asarray(history, "int64") for history in self.histories])
        return np.bincount(items, minlength=self.num_items + 1)[1:]

    def train_inputs(self, length: int) -> dict[str, Array]:
        """Returns `"item_ids"` and `"targets"`, the next item at each position, 0 if there is none.

        Longer histories are cut into pieces, so that each item is a target once.

        Args:
            length: integer. The length of the rows.

        Raises:
            InvalidInputError: `length` is not a positive integer.
        """
        length, pieces = check_integer("length", length), []
        for history in self.histories:
            end = len(history)
            while end > 1:
                start = max(0, end - length - 1)
                pieces.append(history[start:end])
                end = start + 1
        return {
            "item_ids": pad_histories([piece[:-1] for piece in pieces], length),
            "targets": pad_histories([piece[1:] for piece in pieces], length),
        }

    def validation_data(self, length: int) -> tuple[dict[str, Array], Array]:
        """Returns inputs and targets for the second to last item.

        Args:
            length: integer. The number of last items of each history that are read.

        Raises:
            InvalidInputError: `length` is not a positive integer.
        """
        return _before_and_at(self.held_out, -2, length)

    def test_data(self, length: int) -> tuple[dict[str, Array], Array]:
        """Returns inputs and targets for the last item.

        Args:
            length: integer. The number of last items of each history that are read.

        Raises:
            InvalidInputError: `length` is not a positive integer.
        """
        return _before_and_at(self.held_out, -1, length)


def read_histories(histories: Any, num_items: int) -> list[Array]:
    """Checks histories of item ids from 1 to `num_items`, and returns them as int32 arrays."""
    if isinstance(histories, str | bytes) or not isinstance(histories, Iterable):
        raise InvalidInputError(
            "`histories` must be a list of items for each user, as in [[3, 1, 7], [5]]; received "
            f"{histories!r}."
        )
    return [_read_history(index, history, num_items) for index, history in enumerate(histories)]


def _read_history(index: int, history: Any, num_items: int) -> Array:
    user = f"user {index}, counted from 0,"
    try:
        items = np.asarray(history)
    except ValueError:  # Lists of different lengths.
        items = np.asarray(None)
    if items.ndim != 1 or (items.size and items.dtype.kind not in "iu"):
        raise InvalidInputError(
            "`histories` must be a list of integers for each user, as in [[3, 1, 7], [5]]; "
            f"{user} has {history!r}."
        )
    if items.size and not 1 <= items.min() <= items.max() <= num_items:
        raise InvalidInputError(
            f"Items must be from 1 to num_items={num_items}; the history of {user} has "
            f"{items.min()} to {items.max()}."
        )
    return items.astype("int32")


def pad_histories(histories: Sequence[Any], length: int) -> Array:
    """Returns each history's last `length` items as an int32 row, left-padded with 0."""
    rows = np.zeros((len(histories), length), "int32")
    for row, history in zip(rows, histories, strict=True):
        newest = np.asarray(history, "int32")[-length:]
        if newest.size:
            row[-newest.size :] = newest
    return rows


def _before_and_at(histories: list[Any], index: int, length: int) -> tuple[dict[str, Array], Array]:
    length = check_integer("length", length)
    inputs = pad_histories([history[:index] for history in histories], length)
    return {"item_ids": inputs}, np.array([history[index] for history in histories], "int32")
