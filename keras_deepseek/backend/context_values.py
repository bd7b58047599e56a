"""Context variables that have a value for the duration of a block."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def set_temporarily(variable: ContextVar[Any], value: T) -> Iterator[T]:
    """Sets a context variable, yields the value, and resets the variable when the block ends."""
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)
