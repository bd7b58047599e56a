"""Functions that a recording calls as they are: TensorFlow has no recording, but graphs."""

from collections.abc import Callable
from typing import Any


def can_run_apart() -> bool:
    """Whether `run_apart` is of use: operations are recorded, which can keep a call as it is."""
    return False


def run_apart(function: Callable[..., Any], *tensors: Any) -> Any:
    """Returns `function(*tensors)`, of which a recording keeps the call, not what it did."""
    return function(*tensors)
