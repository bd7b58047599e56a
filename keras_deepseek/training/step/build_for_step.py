"""Creates a model's variables for the batches that it will be trained on."""

from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.trainers import (
    build_for_training,
    class_overrides_train_step,
    finish_building,
)


def build_for_step(model: keras.Model, batch: Any) -> None:
    """Creates the variables of a compiled model, its metrics and its optimizers.

    A model with its own `train_step` may not be callable on a batch, for example if that step
    splits the batch first. Then the step itself is traced. PyTorch can't trace it, so that the
    layers of such a model must be built before.

    `batch` is a structure of `KerasTensor`s and `None`.
    """
    try:
        build_for_training(model, batch)
    except Exception:
        if not class_overrides_train_step(model):
            raise
        finish_building(model)  # The step may need a built optimizer.
        backend.current().step.build_by_step(model, batch)
        if not finish_building(model):
            raise
