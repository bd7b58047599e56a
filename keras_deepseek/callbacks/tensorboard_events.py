"""Training logs as event files for TensorBoard."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_deepseek.backend.keras_private.trainers import read_learning_rate
from keras_deepseek.callbacks.event_file import (
    EventFile,
    Scalar,
    find_event_files,
    import_tensorboardx,
)
from keras_deepseek.callbacks.step_logger import Row, StepLogger, numeric_logs
from keras_deepseek.checks import check_path


class TensorBoardEvents(StepLogger):
    """Writes the logs of a training as event files that TensorBoard reads.

    Choose it over `keras.callbacks.TensorBoard` if the training machine has no TensorFlow, or if
    the training may be resumed: `keras.callbacks.TensorBoard` then writes some steps twice. This
    callback needs tensorboardX (`pip install 'keras_deepseek[tensorboard]'`). Runs and tags are the
    same as Keras's, so that TensorBoard shows both side by side:

    | run | tag | by |
    |---|---|---|
    | `train` | `batch_loss`, and so on for each log of a step | step |
    | `train` | `epoch_loss`, ..., `epoch_learning_rate` | epoch |
    | `validation` | `epoch_loss`, ... | epoch |
    | `validation` | `evaluation_loss_vs_iterations`, ... | step |

    Put a `ThroughputMeter` before it in the list of callbacks to see throughput, memory and device
    utilization too. `tensorboard --logdir FOLDER` shows a run while it trains; `FOLDER` is
    `path` or a folder above it.

    Args:
        path: string or path. The folder of the run.
        every: integer. The number of steps between two writes; 0 writes epochs only. Defaults to
            `1`.
        resume: boolean. If true, the training continues the run in the folder, and replaces the
            steps that it repeats. `Trainer.fit(resume=True)` does so by itself. Defaults to
            `False`.

    Raises:
        MissingExtraError: tensorboardX is not installed.
        InvalidInputError: `every` is negative; no file can be created in `path`; or the folder
            holds an earlier run, the training starts at step 0 and `resume` is `False`.

    Example:

    >>> import os, tempfile, keras, numpy as np
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> folder = tempfile.mkdtemp()
    >>> x, y = np.ones((8, 2)), np.ones((8, 1))
    >>> history = model.fit(
    ...     x, y, validation_data=(x, y), verbose=0, callbacks=[TensorBoardEvents(folder)]
    ... )
    >>> sorted(os.listdir(folder))
    ['train', 'validation']
    """

    def __init__(
        self, path: str | os.PathLike[str], *, every: int = 1, resume: bool = False
    ) -> None:
        super().__init__(every=every, resume=resume)
        check_path("path", path)
        import_tensorboardx()  # Fails here, not after the first epoch.
        self.path = path
        self._output = os.fspath(path)
        self._files: dict[str, EventFile] = {}
        self._continues_run = False
        self._first: tuple[int, int] | None = None  # The first step and epoch of this training.

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts counting the steps of an epoch."""
        super().on_epoch_begin(epoch, logs)
        if self._first is None:
            self._first = (self._step, epoch)
            self._file("train")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the logs of the epoch, including validation."""
        rate = read_learning_rate(self.model)
        rate_logs = {} if rate is None else {"learning_rate": rate}
        super().on_epoch_end(epoch, {**rate_logs, **(logs or {})})

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues after the step of a checkpoint, and discards later events."""
        super().set_state(state)
        self._continues_run = True

    def _open(self) -> None:
        self._continues_run = self._continues_run or self.resume
        self._first = None

    def _file(self, run: str) -> EventFile:
        if run not in self._files:
            keep = self._is_kept if self._continues_run else None
            self._files[run] = EventFile(Path(self.path) / run, keep)
        return self._files[run]

    def _is_kept(self, tag: str, step: int) -> bool:
        """Returns True for an event from before this training, by its epoch or its step."""
        first_step, first_epoch = self._first or (0, 0)
        return step < first_epoch if tag.startswith("epoch_") else step <= first_step

    def _write(self, rows: Sequence[Row]) -> None:
        scalars: dict[str, list[Scalar]] = {"train": [], "validation": []}
        for row in rows:
            for name, value in numeric_logs(row.logs).items():
                if not row.ends_epoch:
                    scalars["train"].append(Scalar(f"batch_{name}", row.step, value, row.time))
                    continue
                run, metric_name = ("train", name)
                if name.startswith("val_"):
                    run, metric_name = ("validation", name.removeprefix("val_"))
                    tag = f"evaluation_{metric_name}_vs_iterations"
                    scalars[run].append(Scalar(tag, row.step, value, row.time))
                scalars[run].append(Scalar(f"epoch_{metric_name}", row.epoch, value, row.time))
        for run, run_scalars in scalars.items():
            if run_scalars:
                self._file(run).write(run_scalars)

    def _close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}
        self._continues_run = False

    def _last_step(self) -> int | None:
        # Any number: `_is_kept` drops the events after the first step of this training.
        return 0 if find_event_files(Path(self.path) / "train") else None
