"""Whether what is traced has no gradient, so that it may be computed in ways that have none."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_IS_GRADIENT_FREE: ContextVar[bool] = ContextVar("is_gradient_free", default=False)


@contextmanager
def without_gradients() -> Iterator[None]:
    """In its block a function is traced that no gradient is taken of."""
    token = _IS_GRADIENT_FREE.set(True)
    try:
        yield
    finally:
        _IS_GRADIENT_FREE.reset(token)


def is_gradient_free() -> bool:
    """Whether this is inside of `without_gradients`."""
    return _IS_GRADIENT_FREE.get()
