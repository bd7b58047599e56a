"""Values of context variables that hold for a block of code and whatever it calls."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def set_within(variable: ContextVar[Any], value: T) -> Iterator[T]:
    """Yields a value that a context variable has until the block ends."""
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)
