"""The normalizers of losses that layers add as means: set by a layer, collected by a step.

The module is below layers and training, so that neither imports the other.
"""

from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

from keras import ops

from keras_deepseek.backend.context_values import set_temporarily

_NORMALIZERS: ContextVar[list[Any] | None] = ContextVar("keras_deepseek_loss_means", default=None)


def set_loss_normalizer(weight: Any) -> None:
    """Sets, in the `call` of a layer, the number by which it divides the loss that it adds.

    `Trainer(micro_batches=...)` then weighs each micro-batch by it. So a model whose loss is that
    of the layer makes the same step as with the whole batch. Without it, micro-batches count by
    their rows. Elsewhere it does nothing.

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
