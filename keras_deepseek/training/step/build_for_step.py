"""Building a model for the batches that it will train on."""

from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.trainers import (
    build_for_training,
    class_overrides_train_step,
    finish_building,
)


def build_for_step(model: keras.Model, batch: Any) -> None:
    """Makes the variables of a compiled model, its metrics and its optimizers, for such a batch.

    A model with a `train_step` of its own may not be callable on a batch, as where that step takes
    it apart first: then the step itself is traced. On PyTorch, which can't, its layers must be
    built before.

    Args:
        model: `keras.Model`, compiled.
        batch: Structure of `KerasTensor`s; or `None` in it.
    """
    try:
        build_for_training(model, batch)
    except Exception:
        if not class_overrides_train_step(model):
            raise
        finish_building(model)  # The step may apply an optimizer that must be built.
        backend.current().step.build_by_step(model, batch)
        if not finish_building(model):
            raise
