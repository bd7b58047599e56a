"""The losses of the first steps of a training, ours and that of PyTorch beside it."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import torch

from keras_deepseek.training import Trainer

STEPS = 20
LEARNING_RATE, WEIGHT_DECAY, EPSILON = 1e-3, 0.01, 1e-8


def train_theirs(
    model: torch.nn.Module, compute_loss: Callable[[Any], torch.Tensor], batches: Iterable[Any]
) -> list[float]:
    """Returns the loss of each step, by AdamW of torch."""
    optimizer = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, eps=EPSILON, weight_decay=WEIGHT_DECAY
    )
    losses = []
    for batch in batches:
        loss = compute_loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_ours(
    model: keras.Model, loss: keras.losses.Loss, batches: Sequence[tuple[Any, Any]]
) -> list[float]:
    """Returns the loss of each step, by `Trainer` and AdamW of Keras, of inputs and targets.

    Not by `fit` alone: on TensorFlow Keras squares each part of an embedding's gradient by itself.
    """
    optimizer = keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY, epsilon=EPSILON)
    model.compile(optimizer, loss)
    trainer, losses = Trainer(model), []
    for inputs, targets in batches:
        history = trainer.fit(inputs, targets, batch_size=len(targets), verbose=0)
        losses += history.history["loss"]
    return losses
