"""Context variables by which layers and the step that runs them exchange settings."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from keras import ops

T = TypeVar("T")


@contextmanager
def set_temporarily(variable: ContextVar[Any], value: T) -> Iterator[T]:
    """Context manager that sets a context variable, and resets it at the end."""
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)


_IS_GRADIENT_FREE: ContextVar[bool] = ContextVar("is_gradient_free", default=False)


def without_gradients() -> AbstractContextManager[bool]:
    """Context manager in which operations that have no gradient may be traced."""
    return set_temporarily(_IS_GRADIENT_FREE, value=True)


def is_gradient_free() -> bool:
    """Returns True inside of a `without_gradients` block."""
    return _IS_GRADIENT_FREE.get()


_IS_BATCH_INVARIANT: ContextVar[bool] = ContextVar("is_batch_invariant", default=False)


def make_batch_invariant(*, value: bool) -> AbstractContextManager[bool]:
    """Context manager in which layers compute a sequence alike, whatever is beside it in a batch.

    They may take longer. The sizes of the batch have to stay the same.
    """
    return set_temporarily(_IS_BATCH_INVARIANT, value=value)


def is_batch_invariant() -> bool:
    """Returns True inside of a `make_batch_invariant` block."""
    return _IS_BATCH_INVARIANT.get()


_KNOWN_SIZES: ContextVar[tuple[type, ...] | None] = ContextVar("known_sizes", default=None)


def with_free_sizes(*, knows_others: bool = True) -> AbstractContextManager[Any]:
    """Context manager for a trace of a program that is to hold for any sizes of some axes.

    Layers choose nothing by those sizes, which have a subclass of `int` as their class. They choose
    by no size at all unless `knows_others`.
    """
    return set_temporarily(_KNOWN_SIZES, (int,) if knows_others else ())


def has_free_sizes() -> bool:
    """Returns True inside of a `with_free_sizes` block."""
    return _KNOWN_SIZES.get() is not None


def known_size(size: Any) -> int | None:
    """Returns a size by which a layer may choose an algorithm, or unroll a loop; else `None`.

    A tensor, or `None`, is not known yet. Nor is a free size of a program.
    """
    classes = _KNOWN_SIZES.get()
    return size if isinstance(size, int) and (classes is None or type(size) in classes) else None


_NORMALIZERS: ContextVar[list[Any] | None] = ContextVar("keras_deepseek_loss_means", default=None)


def set_loss_normalizer(weight: Any) -> None:
    """Sets, in the `call` of a layer, the number by which it divides the loss that it adds.

    `Trainer(micro_batches=...)` weighs each micro-batch by this number; without it, by its rows. So
    a model whose loss is that of the layer makes the same step as with the whole batch. Elsewhere
    the call does nothing.

    Args:
        weight: Scalar tensor: the number of tokens that count, or the sum of their weights.

    Example:

    >>> import keras, numpy as np
    >>> from keras_deepseek.training import set_loss_normalizer
    >>> class SquareOfShown(keras.layers.Layer):
    ...     def call(self, x, is_shown):
    ...         num_shown = keras.ops.maximum(keras.ops.sum(is_shown), 1)
    ...         self.add_loss(keras.ops.sum(is_shown * x**2) / num_shown)
    ...         set_loss_normalizer(num_shown)
    ...         return x
    >>> layer = SquareOfShown()
    >>> outputs = layer(np.ones((2, 3)), np.ones((2, 3)))
    >>> len(layer.losses)
    1
    """
    normalizers = _NORMALIZERS.get()
    if normalizers is not None:
        normalizers.append(ops.stop_gradient(ops.cast(weight, "float32")))


def collect_loss_means() -> AbstractContextManager[list[Any]]:
    """Returns a context that yields a list of the normalizers that layers set, float32 scalars."""
    return set_temporarily(_NORMALIZERS, list[Any]())
