"""The iterator of `Trainer.steps`, which yields after each training step."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.backend.data.positioned_data import PositionedData
from keras_deepseek.backend.keras_private.trainers import epoch_logs
from keras_deepseek.training.checkpoints.streamed_training import StreamedCallbacks


@dataclass(frozen=True)
class Step:
    """A training step that has run.

    Args:
        number: integer. The index of the step in its epoch, from 0.
        epoch: integer. The index of the epoch, from 0.
        raw_logs: dict. The logs as tensors of the framework.
    """

    number: int
    epoch: int
    raw_logs: dict[str, Any]

    @property
    def logs(self) -> dict[str, float]:
        """The loss and the metrics as numbers, means of the epoch so far. Waits for the step."""
        return {
            name: float(keras.ops.convert_to_numpy(value)) for name, value in self.raw_logs.items()
        }


def make_steps(
    model: keras.Model,
    data: PositionedData,
    callbacks: StreamedCallbacks,
    *,
    epochs: int,
    initial_epoch: int = 0,
) -> Iterator[Step]:
    """Trains a model, and yields a `Step` after each training step.

    `epochs` is the last epoch, counted from 1; `initial_epoch` the first one, counted from 0.
    """
    model.make_train_function()
    model.stop_training = False
    logs: dict[str, Any] = {}
    callbacks.on_train_begin()
    try:
        for epoch in range(initial_epoch, epochs):
            model.reset_metrics()
            callbacks.on_epoch_begin(epoch)
            for number, batch in enumerate(data.stream.batches()):
                callbacks.on_train_batch_begin(number)
                logs = backend.current().step.run_step(model, batch)
                callbacks.on_train_batch_end(number, logs)
                callbacks.clear_epoch_stop()  # The stream ends the epoch here.
                yield Step(number, epoch, logs)
                if model.stop_training:
                    break
            callbacks.on_epoch_end(epoch, epoch_logs(model, logs))
            if model.stop_training:
                break
    except GeneratorExit:
        callbacks.on_loop_left()
        raise
    finally:  # Leaving the loop ends the training.
        model.optimizer.finalize_variable_values(model.trainable_weights)
        # As after `fit`, also if the loop was left.
        backend.current().step.separate_variables(model)
        callbacks.on_train_end(logs)
