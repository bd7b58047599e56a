"""The parameters of Open Inference requests that Triton's clients send.

They are `classification`, for the largest values of an output as text, `priority` and `timeout`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.protocols.tensor_bytes import string_array

_MIN_RANK = 2

CLASSIFICATION = "classification"
"""The parameter of a requested output with the number of its largest values to return."""

_LEVELS = 2**64
"""The number of Triton's priorities, which are unsigned 64-bit integers."""

_MICROSECONDS = 1_000_000


def read_count(value: Any, where: str) -> int:
    """Returns the number of classes that a request parameter asks for; 0 means the raw output."""
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInputError(
            f"{where}: received {CLASSIFICATION}={value!r:.30}; expected an integer of at least 1."
        )
    return value


def largest(array: Array, count: int, where: str) -> Array:
    """Returns the `count` largest values of each row, as `b"value:index"`, the largest first.

    If a row has fewer values, all of them are returned.
    """
    if array.dtype == object or array.ndim < _MIN_RANK:
        raise InvalidInputError(
            f"{where}: classification needs an output with rows of numbers; this one is "
            f"{array.dtype} of shape {array.shape}."
        )
    rows = array.reshape(len(array), int(np.prod(array.shape[1:])))
    if rows.dtype.kind not in "iub":
        rows = rows.astype(np.float64)
    # Equal values keep their order: the rows are reversed before and after the stable sort.
    order = np.argsort(rows[:, ::-1], axis=1, kind="stable")[:, ::-1]
    indices = rows.shape[1] - 1 - order[:, :count]
    values = np.take_along_axis(rows, indices, axis=1)
    form = "{:f}:{}" if rows.dtype.kind == "f" else "{:d}:{}"
    texts = [
        form.format(value, index).encode()
        for value, index in zip(values.ravel().tolist(), indices.ravel().tolist(), strict=True)
    ]
    return string_array(texts).reshape(indices.shape)


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
