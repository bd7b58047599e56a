"""One step of training, as Keras's loop on PyTorch takes it."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import torch


def make_train_step(
    model: keras.Model, step: Callable[[Any], dict[str, Any]]
) -> Callable[..., Any]:
    """Returns what Keras takes as the `train_step` of a model."""
    return step


def apply_update(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[Any],
    variables: Sequence[keras.Variable],
) -> None:
    """Does what `optimizer.apply` does, in the fastest way that the framework has."""
    with torch.no_grad():
        optimizer.apply(gradients, variables)
