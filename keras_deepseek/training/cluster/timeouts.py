"""Reads the timeouts for other processes from the environment."""

import math
import os

from keras_deepseek.errors import InvalidInputError

_JOIN_TIMEOUT = "KERAS_DEEPSEEK_JOIN_TIMEOUT", 300.0
"""Seconds to wait for other processes to come."""

_PEER_TIMEOUT = "KERAS_DEEPSEEK_PEER_TIMEOUT", 600.0
"""Seconds to wait for a process that came and does not answer."""


def read_join_timeout() -> float:
    """Returns the number of seconds to wait for other processes to join."""
    return _read_seconds(*_JOIN_TIMEOUT)


def read_peer_timeout() -> float:
    """Returns the number of seconds after which a silent process counts as lost."""
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
        raise InvalidInputError(f"{name} must be a number of seconds above 0; received {text!r}.")
    return seconds
