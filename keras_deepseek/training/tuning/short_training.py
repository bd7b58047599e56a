"""Short trainings whose effects are undone, for the learning rate and batch size searches."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import keras

from keras_deepseek.backend.data.batch_stream import BatchStream
from keras_deepseek.backend.data.positioned_data import PositionedData
from keras_deepseek.backend.data.random_state import read_random_state, write_random_state
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.checkpoints.training_state import (
    find_own_optimizers,
    read_variables,
    write_variables,
)
from keras_deepseek.training.data.class_weights import weigh_classes
from keras_deepseek.training.data.position_data import (
    check_data,
    check_options,
    check_targets,
    position_data,
)
from keras_deepseek.training.fit.error_notes import missing_loss_errors
from keras_deepseek.training.fit.overridden_fit import keras_fit_arguments
from keras_deepseek.training.step.training_step import build_for_step


class ShortTraining:
    """Trains a model for some steps, and restores its state afterwards.

    The weights and states of the layers, the optimizer, the metrics and the random number
    generators are restored to the bit. A model that was not built stays built.

    Args:
        in_training: Function without arguments. It returns a context manager in which the model
            trains by the trainer's steps.
        needs_targets: True if the loss is one between outputs and targets. Defaults to `False`.
    """

    def __init__(
        self,
        model: keras.Model,
        in_training: Callable[[], AbstractContextManager[Any]],
        *,
        needs_targets: bool = False,
    ) -> None:
        self._model = model
        self._in_training = in_training
        self._needs_targets = needs_targets
        self._state: dict[str, Any] | None = None

    @contextmanager
    def restored_state(self) -> Iterator[None]:
        """Context manager that restores everything that trainings in the block have changed."""
        random = read_random_state()
        try:
            yield
        finally:
            with self._in_training():  # It may add metrics, whose values are restored too.
                self.restore()
            self._state = None
            write_random_state(random)

    def restore(self) -> None:
        """Restores the variables' values from before the first training."""
        if self._state is not None:
            write_variables(self._model, self._state)

    def fit(
        self,
        steps: int,
        callbacks: Iterable[keras.callbacks.Callback],
        *,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        batch_size: int | None = None,
        class_weight: Any = None,
    ) -> None:
        """Trains for `steps` steps, or fewer if a generator or a callback ends the training.

        The data are repeated as often as necessary.

        Raises:
            InvalidInputError: The model has no loss, its `steps_per_execution` is not 1, or there
                is no batch.
        """
        if self._model.steps_per_execution != 1:
            raise InvalidInputError(
                "Searches and profiles read the logs of each step, and the model runs "
                f"{self._model.steps_per_execution} at once: compile it with steps_per_execution=1."
            )
        positioned = self._open(
            x=x, y=y, sample_weight=sample_weight, batch_size=batch_size, class_weight=class_weight
        )
        stream = positioned.stream
        chosen = [*callbacks, _StepLimit(steps, stream)]
        with missing_loss_errors(self._model), self._in_training():
            self._build(positioned)
            self.restore()
            keras.Model.fit(self._model, positioned, epochs=steps, verbose=0, callbacks=chosen)

    def first_batch(self, **data: Any) -> Any:
        """Builds the model, and returns the first batch of the data as tensors."""
        positioned = self._open(**data)
        with missing_loss_errors(self._model), self._in_training():
            self._build(positioned)
        (batch,) = positioned.stream.peek(1)
        return keras.tree.map_structure(
            lambda array: None if array is None else keras.ops.convert_to_tensor(array), batch
        )

    def _open(self, **data_arguments: Any) -> PositionedData:
        arguments = keras_fit_arguments(self._model, data_arguments)
        check_data(arguments["x"], arguments["batch_size"])
        if self._needs_targets:
            check_targets(arguments["x"], arguments["y"])
        check_options({"epochs": 1, **arguments}, resume=False)
        arguments = weigh_classes(self._model, arguments)
        _, data = position_data(arguments, seed=0)
        data.open()
        return data

    def _build(self, data: PositionedData) -> None:
        if self._state is None:
            build_for_step(self._model, data.symbolic_batch())
            for name, optimizer in find_own_optimizers(self._model).items():
                if not optimizer.built:
                    raise InvalidInputError(
                        f"A search restores the optimizers, and {name!r} of model "
                        f"{self._model.name!r} is not built yet: call its build(variables) first."
                    )
            self._state = read_variables(self._model)
        data.allow_other_sizes(getattr(self._model, "inputs", None) or [])


class _StepLimit(keras.callbacks.Callback):
    """A callback that ends a training after a number of steps, and epochs at the data's end."""

    def __init__(self, steps: int, stream: BatchStream) -> None:
        super().__init__()
        self._num_steps_left = steps
        self._stream = stream
        self._ends_epoch = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._stream.begin_epoch()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._num_steps_left -= 1
        if self.model.stop_training:
            return
        is_last = batch + 1 == self._stream.epoch_length
        self._ends_epoch = (
            is_last and self._num_steps_left > 0 and self._stream.source.kind != "generator"
        )
        if is_last or self._num_steps_left == 0:
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._stream.end_epoch()
        if self._ends_epoch:
            self._ends_epoch = self.model.stop_training = False
