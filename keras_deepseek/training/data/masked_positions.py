"""The positions of masked tokens, for a head that computes outputs only there."""

from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError


def gather_masked_positions(
    targets: Any, masks_per_sequence: int | None = None, *, ignore_class: int = -100
) -> tuple[Array, Array]:
    """Returns the positions that have a target, and their targets.

    Choose it for `layers.MaskedPositionHead`, which projects only these positions to the
    vocabulary: about one in seven. The input is targets of `mask_tokens`, or rows of them from
    `pack_sequences`. Rows with fewer masked tokens are padded. Pass `ignore_class` to the loss, so
    that padding does not count.

    Args:
        targets: Integer array of shape `(num_rows, length)`: the original token where one was
            masked, and `ignore_class` elsewhere.
        masks_per_sequence: integer. The number of positions in each row, for batches of one shape.
            Defaults to `None`: the most that a row has.
        ignore_class: integer. The target where nothing was masked. Defaults to `-100`.

    Returns:
        A pair of int32 arrays of shape `(num_rows, masks_per_sequence)`: the positions in ascending
            order, padded with -1; and their targets, padded with `ignore_class`.

    Raises:
        InvalidInputError: `targets` have another shape or dtype, or a row has more masked tokens
            than `masks_per_sequence`.

    Example:

    >>> from keras_deepseek.training import gather_masked_positions
    >>> positions, targets = gather_masked_positions([[-100, 7, -100, 8], [5, -100, -100, -100]])
    >>> positions.tolist(), targets.tolist()
    ([[1, 3], [0, -1]], [[7, 8], [5, -100]])
    """
    rows = np.asarray(targets)
    if rows.ndim != 2 or rows.dtype.kind not in "iu":  # noqa: PLR2004
        raise InvalidInputError(
            "`targets` must be integers of shape (num_rows, length); received "
            f"{rows.dtype} of shape {rows.shape}."
        )
    is_masked = rows != ignore_class
    counts = is_masked.sum(axis=1)
    most = int(counts.max(initial=0))
    count = most
    if masks_per_sequence is not None:
        count = check_integer("masks_per_sequence", masks_per_sequence)
    if most > count:
        raise InvalidInputError(
            f"Row {int(counts.argmax())}, counted from 0, has {most} masked tokens; received "
            f"masks_per_sequence={count}. Mask fewer tokens, or pass at least {most}."
        )
    # A stable sort puts the masked positions of each row first, in ascending order.
    order = np.argsort(~is_masked, axis=1, kind="stable")[:, :count]
    exists = np.take_along_axis(is_masked, order, axis=1)
    positions = np.where(exists, order, -1).astype("int32")
    chosen = np.where(exists, np.take_along_axis(rows, order, axis=1), ignore_class)
    filling = [(0, 0), (0, count - order.shape[1])]  # If `count` is more than the row length.
    return (
        np.pad(positions, filling, constant_values=-1),
        np.pad(chosen.astype("int32"), filling, constant_values=ignore_class),
    )
