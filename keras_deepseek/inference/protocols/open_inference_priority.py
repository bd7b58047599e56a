"""The priority and the timeout of an Open Inference request, as Triton's clients send them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from keras_deepseek.errors import InvalidInputError

_LEVELS = 2**64
"""The number of Triton's priorities, which are unsigned 64-bit integers."""

_MICROSECONDS = 1_000_000


class TimeoutAndPriority(NamedTuple):
    """The timeout of a request in seconds, and its priority. Higher ones run first."""

    timeout: float | None = None
    priority: int = 0

    def within(self, timeout: float | None) -> "TimeoutAndPriority":
        """Returns a copy with the shorter of its own timeout and `timeout`, in seconds."""
        if timeout is None or (self.timeout is not None and self.timeout <= timeout):
            return self
        return TimeoutAndPriority(timeout, self.priority)


_NONE = TimeoutAndPriority()


def read_timeout_and_priority(parameters: Mapping[str, Any]) -> TimeoutAndPriority:
    """Reads the parameters `priority` and `timeout` of a request.

    In Triton 1 is the highest priority and 0 the default. The engine runs higher numbers first, so
    1 becomes `2**64 - 1`, 2 becomes `2**64 - 2`, and the default 0 is the lowest. Triton's timeout
    is in microseconds; 0 means none.
    """
    if not parameters:
        return _NONE
    level, microseconds = _read(parameters, "priority"), _read(parameters, "timeout")
    return TimeoutAndPriority(
        microseconds / _MICROSECONDS if microseconds else None, _LEVELS - level if level else 0
    )


def _read(parameters: Mapping[str, Any], name: str) -> int:
    value = parameters.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _LEVELS:
        raise InvalidInputError(
            f"The parameter {name!r} must be a whole number, 0 or above; received {value!r:.50}."
        )
    return value
