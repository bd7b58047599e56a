"""Context managers that set a context variable for the duration of a block."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def set_temporarily(variable: ContextVar[Any], value: T) -> Iterator[T]:
    """Context manager that sets a context variable, and resets it at the end."""
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)
