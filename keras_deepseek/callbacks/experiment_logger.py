"""Base class of callbacks that report to an experiment tracking service."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_deepseek.callbacks.step_logger import Row, StepLogger, numeric_logs


class ExperimentLogger(StepLogger):
    """Reports the logs of a training, its settings, and whether it succeeded.

    A subclass has `_start`, `_send`, `_finish` and `_is_sent`. Logs of steps are named `batch/loss`
    and so on, logs of epochs `epoch/loss` and `epoch/val_loss`; both are sent by step. A checkpoint
    holds the run's id: a resumed training continues that run, and does not report the steps again
    that an earlier process reported.
    """

    _longest_wait = 30.0  # A service may be far away.

    def __init__(self, *, run_id: str | None, config: Mapping[str, Any] | None, every: int) -> None:
        super().__init__(every=every)
        self.run_id = run_id
        self.config = dict(config or {})
        self._has_ended = False

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Reports the waiting logs, and that the training succeeded."""
        self._has_ended = True
        super().on_train_end(logs)

    def get_state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint, including the run's id."""
        return {**super().get_state(), "run_id": self.run_id}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues the run of a checkpoint."""
        self.run_id = state["run_id"]
        super().set_state(state)

    def _open(self) -> None:
        self._has_ended = False
        optimizer = self.model.optimizer
        run_config = {
            "model": self.model.name,
            "parameters": self.model.count_params() if self.model.built else None,
            "optimizer": type(getattr(optimizer, "inner_optimizer", optimizer)).__name__,
            "precision": self.model.dtype_policy.name,
            "backend": keras.backend.backend(),
            "keras": keras.__version__,
            "epochs": self.params.get("epochs"),
            "steps_per_epoch": self.params.get("steps"),
        }
        self.run_id = self._start({**run_config, **self.config})

    def _write(self, rows: Sequence[Row]) -> None:
        self._send(
            [
                (
                    row,
                    {
                        f"{'epoch' if row.ends_epoch else 'batch'}/{name}": value
                        for name, value in numeric_logs(row.logs).items()
                    },
                )
                for row in rows
                if not self._is_sent(row)
            ]
        )

    def _close(self) -> None:
        self._finish(has_ended=self._has_ended)

    def _start(self, config: dict[str, Any]) -> str:
        """Starts a run, or continues the run `run_id`; returns its id."""
        raise NotImplementedError

    def _send(self, values: Sequence[tuple[Row, dict[str, float]]]) -> None:
        """Sends rows of logs to the tracking service, in the order of their steps."""
        raise NotImplementedError

    def _finish(self, *, has_ended: bool) -> None:
        """Ends the run at the tracking service.

        `has_ended` is false if an error or a signal ended the training.
        """
        raise NotImplementedError

    def _is_sent(self, row: Row) -> bool:
        """Returns true if an earlier process has reported this row."""
        raise NotImplementedError
