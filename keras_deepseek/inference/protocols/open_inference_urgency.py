"""How urgent an Open Inference request is, by its `parameters`, as Triton's clients say it.

`open_inference_rest` and `open_inference_rpc` hand it to the engine.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from keras_deepseek.errors import InvalidInputError

_LEVELS = 2**64
"""Triton's priorities are unsigned integers of 64 bits."""

_MICROSECONDS = 1_000_000


class Urgency(NamedTuple):
    """What the engine is told beside a request's inputs.

    Args:
        timeout: float. Seconds, or `None` for no limit. Defaults to `None`.
        priority: integer. Higher ones are run first. Defaults to `0`.
    """

    timeout: float | None = None
    priority: int = 0

    def within(self, timeout: float | None) -> "Urgency":
        """Returns the same with the shorter of two limits.

        Args:
            timeout: float. Seconds, or `None` for no limit.
        """
        if timeout is None or (self.timeout is not None and self.timeout <= timeout):
            return self
        return Urgency(timeout, self.priority)


_NONE = Urgency()


def read_urgency(parameters: Mapping[str, Any]) -> Urgency:
    """Returns what `priority` and `timeout` of a request say.

    Triton's priority 1 is the highest, larger numbers are lower, and 0 stands for the default. Here
    the default is below all that are named: 1 becomes `2**64 - 1`, 2 becomes `2**64 - 2`. Triton's
    timeout is in microseconds, and 0 stands for none.

    Args:
        parameters: mapping. Others are not looked at.

    Raises:
        InvalidInputError: One of the two is no whole number of 64 bits, from 0 up.

    Example:

    >>> read_urgency({"timeout": 20_000})
    Urgency(timeout=0.02, priority=0)
    """
    if not parameters:
        return _NONE
    level, microseconds = _read(parameters, "priority"), _read(parameters, "timeout")
    return Urgency(
        microseconds / _MICROSECONDS if microseconds else None, _LEVELS - level if level else 0
    )


def _read(parameters: Mapping[str, Any], name: str) -> int:
    value = parameters.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _LEVELS:
        raise InvalidInputError(
            f"The parameter {name!r} must be a whole number, 0 or above; received {value!r:.50}."
        )
    return value
