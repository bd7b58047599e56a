"""The check that the sizes of every layer go through."""

from typing import Any

from keras_deepseek.artifacts.errors import InvalidInputError


def check_size(name: str, value: Any) -> int:
    """Returns a size, or says what was received in its place.

    Args:
        name: string. The argument, as the error names it.
        value: What was given.

    Raises:
        InvalidInputError: It is not an integer of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidInputError(f"`{name}` must be a positive integer, received {value!r}.")
    return value
