"""What the callbacks share that report a training to a service which tracks experiments."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_deepseek.callbacks.step_logger import Row, StepLogger, numbers


class ExperimentLogger(StepLogger):
    """Reports the logs of a training, its settings, and whether it has ended well.

    A subclass has `_start`, `_send`, `_finish` and `_is_sent`. Logs of steps are named `batch/loss`
    and so on, those of epochs `epoch/loss`, `epoch/val_loss`; both by the step. The run's id is
    part of a checkpoint: a training that is resumed goes on with its run, and leaves out the steps
    that were reported before, which it makes again with the same numbers.

    Args:
        run_id: string. The run to go on with, or `None` for a new one.
        config: dict. Settings to report beside the model's and the training's own.
        every: integer. Report every so many steps; 0 for epochs alone.
    """

    _longest_wait = 30.0  # A service may be far away.

    def __init__(self, *, run_id: str | None, config: Mapping[str, Any] | None, every: int) -> None:
        super().__init__(every=every)
        self.run_id = run_id
        self.config = dict(config or {})
        self._has_ended = False

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Reports what is left, and that the training has ended well."""
        self._has_ended = True
        super().on_train_end(logs)

    def get_state(self) -> dict[str, Any]:
        """Returns what a checkpoint holds of it, the run's id too."""
        return {**super().get_state(), "run_id": self.run_id}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on with the run of a checkpoint."""
        self.run_id = state["run_id"]
        super().set_state(state)

    def _open(self) -> None:
        self._has_ended = False
        optimizer = self.model.optimizer
        found = {
            "model": self.model.name,
            "parameters": self.model.count_params() if self.model.built else None,
            "optimizer": type(getattr(optimizer, "inner_optimizer", optimizer)).__name__,
            "precision": self.model.dtype_policy.name,
            "backend": keras.backend.backend(),
            "keras": keras.__version__,
            "epochs": self.params.get("epochs"),
            "steps_per_epoch": self.params.get("steps"),
        }
        self.run_id = self._start({**found, **self.config})

    def _write(self, rows: Sequence[Row]) -> None:
        self._send(
            [
                (
                    row,
                    {
                        f"{'epoch' if row.ends_epoch else 'batch'}/{name}": value
                        for name, value in numbers(row.logs).items()
                    },
                )
                for row in rows
                if not self._is_sent(row)
            ]
        )

    def _close(self) -> None:
        self._finish(has_ended=self._has_ended)

    def _start(self, config: dict[str, Any]) -> str:
        """Starts a run, or goes on with that of `run_id`; returns its id."""
        raise NotImplementedError

    def _send(self, values: Sequence[tuple[Row, dict[str, float]]]) -> None:
        """Reports rows and their values by name, by rising step."""
        raise NotImplementedError

    def _finish(self, *, has_ended: bool) -> None:
        """Ends the run; `has_ended` is `False` where an error, or a signal, ended the training."""
        raise NotImplementedError

    def _is_sent(self, row: Row) -> bool:
        """Whether an earlier process has reported it."""
        raise NotImplementedError
