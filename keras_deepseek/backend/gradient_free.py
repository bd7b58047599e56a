"""Whether what is traced has no gradient, so that it may be computed in ways that have none."""

from contextlib import AbstractContextManager
from contextvars import ContextVar

from keras_deepseek.backend.context_values import set_within

_IS_GRADIENT_FREE: ContextVar[bool] = ContextVar("is_gradient_free", default=False)


def without_gradients() -> AbstractContextManager[bool]:
    """In its block a function is traced that no gradient is taken of."""
    return set_within(_IS_GRADIENT_FREE, value=True)


def is_gradient_free() -> bool:
    """Whether this is inside of `without_gradients`."""
    return _IS_GRADIENT_FREE.get()
