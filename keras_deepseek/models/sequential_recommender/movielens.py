"""Readers of MovieLens rating files in a local folder. Nothing is downloaded."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_deepseek.checks import check_integer, check_path
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models.sequential_recommender.interactions import Interactions

_HEADER = "userId,movieId,rating,timestamp"


def read_movielens(
    folder: str | os.PathLike[str],
    *,
    min_rating: float | None = None,
    min_items_per_user: int = 5,
    min_users_per_item: int = 5,
) -> Interactions:
    r"""Reads the ratings of a MovieLens folder as histories, in order of time, without the stars.

    Choose it to train a recommender on real data. The file names tell the format: `ratings.csv` of
    ml-20m, ml-25m, ml-32m and ml-latest, `ratings.dat` of ml-1m and ml-10m, and `u.data` of
    ml-100k. Users and movies with few ratings are left out, repeatedly until none is left.

    Args:
        folder: path. The folder with the files.
        min_rating: float or `None`. Lower ratings are left out. Defaults to `None`: all are kept.
        min_items_per_user: integer. Users with fewer movies are left out. Defaults to `5`.
        min_users_per_item: integer. Movies with fewer users are left out. Defaults to `5`.

    Returns:
        `Interactions`, with the ids of users and movies in the files as names.

    Raises:
        InvalidInputError: There is no such file, it has another format, or nothing is left.

    Example:

    >>> from pathlib import Path
    >>> folder = Path("ml-latest-small")
    >>> folder.mkdir()
    >>> header = "userId,movieId,rating,timestamp"
    >>> _ = (folder / "ratings.csv").write_text(f"{header}\n1,50,4.0,9\n1,7,5.0,2\n")
    >>> data = read_movielens(folder, min_items_per_user=1, min_users_per_item=1)
    >>> data.histories[0].tolist(), data.item_names
    ([1, 2], [7, 50])

    Reference:

    - [The MovieLens Datasets (Harper and Konstan, 2015)](https://doi.org/10.1145/2827872)
    """
    path = _find_file(Path(check_path("folder", folder)))
    check_integer("min_items_per_user", min_items_per_user)
    check_integer("min_users_per_item", min_users_per_item)
    users, items, ratings, times = _read_columns(path)
    keeps = np.ones(len(users), bool) if min_rating is None else ratings >= min_rating
    # Leaving out a user may make a movie infrequent, and the other way round.
    while True:
        num_kept = keeps.sum()
        keeps &= _is_frequent(users, keeps, min_items_per_user)
        keeps &= _is_frequent(items, keeps, min_users_per_item)
        if keeps.sum() == num_kept:
            break
    if not keeps.any():
        raise InvalidInputError(
            f"None of the {len(users)} ratings of {path.name!r} is left: lower `min_rating`, "
            "`min_items_per_user` or `min_users_per_item`."
        )
    users, items, times = users[keeps], items[keeps], times[keeps]
    order = np.lexsort((times, users))  # Stable: equal times keep the file's order.
    user_names, user_starts = np.unique(users[order], return_index=True)
    item_names, item_ids = np.unique(items[order], return_inverse=True)
    histories = np.split((item_ids.reshape(-1) + 1).astype("int32"), user_starts[1:])
    return Interactions(histories, len(item_names), item_names.tolist(), user_names.tolist())


def _find_file(folder: Path) -> Path:
    for name in _FORMATS:
        if (folder / name).is_file():
            return folder / name
    raise InvalidInputError(
        f"{str(folder)!r} has no MovieLens ratings: expected one of {', '.join(_FORMATS)}. Unpack "
        "the archive, and give the folder with the file."
    )


def _read_columns(path: Path) -> tuple[Any, Any, Any, Any]:
    separate, delimiter = _FORMATS[path.name]
    with path.open(encoding="latin-1") as lines:
        if delimiter == "," and next(lines, "").strip() != _HEADER:
            raise InvalidInputError(f"{path.name!r} must begin with the line {_HEADER!r}.")
        try:
            table = np.loadtxt(separate(lines), delimiter=delimiter, dtype="float64", ndmin=2)
        except ValueError as error:
            raise InvalidInputError(
                f"{path.name!r} does not have the MovieLens format: {error}"
            ) from error
    if table.shape[1:] != (4,):
        raise InvalidInputError(
            f"{path.name!r} must have four columns, received a table of shape {table.shape}."
        )
    users, items, ratings, times = table.T
    return users.astype("int64"), items.astype("int64"), ratings, times.astype("int64")


def _unchanged(lines: Iterator[str]) -> Iterator[str]:
    return lines


def _with_tabs(lines: Iterator[str]) -> Iterator[str]:
    return (line.replace("::", "\t") for line in lines)


_FORMATS: dict[str, tuple[Callable[[Iterator[str]], Iterator[str]], str]] = {
    "ratings.csv": (_unchanged, ","),
    "ratings.dat": (_with_tabs, "\t"),
    "u.data": (_unchanged, "\t"),
}
"""For each file name: the function for its lines, and the delimiter of its columns after it."""


def _is_frequent(values: Any, keeps: Any, least: int) -> Any:
    """Returns true for rows whose value occurs at least `least` times among the kept rows."""
    _, indices = np.unique(values, return_inverse=True)
    counts = np.bincount(indices[keeps], minlength=int(indices.max(initial=-1)) + 1)
    return counts[indices] >= least
