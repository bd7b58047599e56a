"""A context manager for tracing functions that need no gradient."""

from contextlib import AbstractContextManager
from contextvars import ContextVar

from keras_deepseek.backend.context_values import set_temporarily

_IS_GRADIENT_FREE: ContextVar[bool] = ContextVar("is_gradient_free", default=False)


def without_gradients() -> AbstractContextManager[bool]:
    """Context manager in which operations that have no gradient may be traced."""
    return set_temporarily(_IS_GRADIENT_FREE, value=True)


def is_gradient_free() -> bool:
    """Returns True inside of a `without_gradients` block."""
    return _IS_GRADIENT_FREE.get()
