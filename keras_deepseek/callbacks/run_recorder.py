"""Training logs in a run record."""

import os
from collections.abc import Sequence
from typing import Any

import keras

from keras_deepseek.artifacts.run_record import RunRecord
from keras_deepseek.backend.keras_private.callbacks import trained_model
from keras_deepseek.callbacks.step_logger import Row, StepLogger, numeric_logs
from keras_deepseek.callbacks.training_pace import TrainingPace
from keras_deepseek.checks import check_file_path


class RunRecorder(StepLogger):
    """Stores the logs of a training run in a `RunRecord`.

    Keras's logs of a batch are means since the start of the epoch. Validation is stored with the
    epoch's last step, under Keras's names (`val_loss`, ...). About once a second it adds
    `steps_per_second`, `samples_per_second`, `learning_rate`, `process_memory_bytes` and, on an
    accelerator, `device_memory_bytes`, unless another callback logs them.

    Args:
        path: string or path. The SQLite file of the run record.
        every: integer. The number of steps between two entries; 0 stores only the ends of epochs.
            Defaults to `1`.
        resume: boolean. If true, the training continues the run in the file, and replaces the steps
            that it repeats. Defaults to `False`.

    Raises:
        InvalidInputError: `every` is negative; or the file holds an earlier run, the training
            starts at step 0 and `resume` is `False`.

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
        super().__init__(every=every, resume=resume)
        check_file_path("path", path)
        self.path = path
        self._output = os.fspath(path)
        self._pace = TrainingPace()
        self._record: RunRecord | None = None
        self._next_figures = 0.0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Opens the record and describes the run."""
        super().on_train_begin(logs)
        self._pace = TrainingPace()
        if self._record is not None:
            self._record.describe(
                {
                    "model": self.model.name,
                    "parameters": self.model.count_params() if self.model.built else None,
                    "backend": keras.backend.backend(),
                    "keras": keras.__version__,
                    "epochs": self.params.get("epochs"),
                    "steps_per_epoch": self.params.get("steps"),
                }
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts counting the steps of an epoch."""
        super().on_epoch_begin(epoch, logs)
        self._pace.begin_epoch()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Reads the learning rate and the pace before a step, while they are free to read."""
        super().on_train_batch_begin(batch, logs)
        self._pace.before_step(trained_model(self), batch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Stores the logs of the epoch, including validation."""
        super().on_epoch_end(epoch, {**self._pace.figures(of_epoch=True), **(logs or {})})

    def _add(self, batch: int, logs: dict[str, float]) -> None:
        now = self._pace.after_step(batch)
        if now >= self._next_figures:
            self._next_figures = now + 1.0
            logs = {**self._pace.figures(), **logs}
        super()._add(batch, logs)

    def _open(self) -> None:
        self._record = RunRecord(self.path)

    def _write(self, rows: Sequence[Row]) -> None:
        if self._record is not None:
            self._record.log_steps([(row.step, numeric_logs(row.logs)) for row in rows])

    def _close(self) -> None:
        if self._record is not None:
            self._record.close()
            self._record = None

    def _last_step(self) -> int | None:
        return None if self._record is None else self._record.last_step()

    def _discard_after(self, step: int) -> None:
        if self._record is not None:
            self._record.discard_after(step)
