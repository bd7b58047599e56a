"""The check that a mask goes through in layers that take one as an argument."""

from typing import Any

from keras_deepseek.artifacts.errors import InvalidInputError


def check_mask(mask: Any, inputs: Any) -> None:
    """Raises an error where a mask is not one of the inputs.

    Args:
        mask: Tensor or `None`, which fits always.
        inputs: Tensor of shape `(batch_size, length, ...)`.

    Raises:
        InvalidInputError: The mask has another shape than `(batch_size, length)`.
    """
    if mask is None:
        return
    received, expected = tuple(mask.shape), tuple(inputs.shape[:2])
    fits = len(received) == len(expected) and all(
        None in sizes or sizes[0] == sizes[1] for sizes in zip(received, expected, strict=True)
    )
    if not fits:
        raise InvalidInputError(
            f"`mask` must be of shape (batch_size, length), for these inputs {expected}, received "
            f"{received}."
        )
