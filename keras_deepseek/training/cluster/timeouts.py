"""How long a process waits for the others."""

import math
import os

from keras_deepseek.errors import InvalidInputError

_JOIN_TIMEOUT = "KERAS_DEEPSEEK_JOIN_TIMEOUT", 300.0
"""How long a process waits for the others to come, in seconds."""

_PEER_TIMEOUT = "KERAS_DEEPSEEK_PEER_TIMEOUT", 600.0
"""How long it waits, in seconds, for one that was there and does not answer."""


def read_join_timeout() -> float:
    """Returns the seconds that others have to come.

    Raises:
        InvalidInputError: The environment says something else.
    """
    return _read_seconds(*_JOIN_TIMEOUT)


def read_peer_timeout() -> float:
    """Returns the seconds after which a process that does not answer is given up.

    Raises:
        InvalidInputError: The environment says something else.
    """
    return _read_seconds(*_PEER_TIMEOUT)


def _read_seconds(name: str, default: float) -> float:
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidInputError(f"{name} is a number of seconds above 0; received {text!r}.")
    return seconds
