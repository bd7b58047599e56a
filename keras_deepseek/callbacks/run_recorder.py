"""Writes what training logs into a run record."""

import os
from typing import Any

import keras

from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.artifacts.run_record import RunRecord


class RunRecorder(keras.callbacks.Callback):
    """Stores the logs of a training run in a `RunRecord`.

    What Keras logs for a batch is the mean since the start of the epoch. Validation is stored with
    the epoch's last step, under Keras's names (`val_loss`, ...).

    Args:
        path: string or path. The SQLite file of the run record.
        every: integer. Store every so many steps. Defaults to `1`.
        resume: boolean. Whether the training goes on with the run that the file holds, also where
            it makes its first steps anew. Defaults to `False`.

    Raises:
        InvalidInputError: `every` is below 1; or, when a training starts at step 0 and `resume` is
            `False`, the file holds an earlier run.

    Example:

    >>> import tempfile, keras, numpy as np
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> path = tempfile.mkdtemp() + "/run.sqlite"
    >>> history = model.fit(
    ...     np.ones((8, 2)), np.ones((8, 1)), batch_size=4, verbose=0, callbacks=[RunRecorder(path)]
    ... )
    >>> with RunRecord(path) as record:
    ...     [step for step, value in record.scalars("loss")]
    [1, 2]
    """

    def __init__(
        self, path: str | os.PathLike[str], *, every: int = 1, resume: bool = False
    ) -> None:
        super().__init__()
        if every < 1:
            raise InvalidInputError(f"`every` must be at least 1 step; received {every!r}.")
        self.path = path
        self.every = every
        self.resume = resume
        self._step = 0
        self._record: RunRecord | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Opens the record and describes the run."""
        self.on_train_end()  # Of a training that an error ended.
        self._step = int(self.model.optimizer.iterations)
        self._record = RunRecord(self.path)
        if self._step == 0 and not self.resume and self._record.names():
            self.on_train_end()
            raise InvalidInputError(
                f"{os.fspath(self.path)!r} holds an earlier run, and this one starts anew: name "
                "another file, or remove that one."
            )
        self._record.describe(
            {
                "model": self.model.name,
                "parameters": self.model.count_params(),
                "backend": keras.backend.backend(),
                "keras": keras.__version__,
                "epochs": self.params.get("epochs"),
                "steps_per_epoch": self.params.get("steps"),
            }
        )

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stores the logs of the step."""
        self._step += 1
        if self._step % self.every == 0:
            self._log(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Stores the logs of the epoch, validation among them."""
        self._log(logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes the record."""
        if self._record is not None:
            self._record.close()
            self._record = None

    def _log(self, logs: dict[str, Any] | None) -> None:
        if self._record is not None and logs:
            self._record.log(self._step, {name: float(value) for name, value in logs.items()})
