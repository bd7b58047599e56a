"""Training logs in Weights & Biases."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from keras_deepseek.callbacks.experiment_logger import ExperimentLogger
from keras_deepseek.callbacks.step_logger import Row
from keras_deepseek.errors import MissingExtraError


class WandbLogger(ExperimentLogger):
    """Reports the logs of a training to Weights & Biases.

    Names are those of W&B's own Keras callback: `batch/loss` and so on by step, `epoch/loss` and
    `epoch/val_loss` with the last step of the epoch. The run's `config` includes the model's name,
    its size, the optimizer and the length of the training. If a run is active when the training
    begins, it is used and not finished. Otherwise a run is started, and finished at the end. A
    training that `Trainer` resumes from a checkpoint continues the same run id. Set
    `WANDB_MODE=offline` to write only to a folder.

    Args:
        project: string. The project's name. Defaults to `None`: W&B chooses.
        name: string. The run's name. Defaults to `None`: W&B makes one.
        run_id: string. The run to continue. Defaults to `None`: a new run.
        config: dict. Further settings to report. Defaults to `None`.
        every: integer. The number of steps between two reports; 0 reports epochs only. Defaults to
            `1`.
        **options: Further arguments of `wandb.init`: `entity`, `tags`, `dir`, ...

    Raises:
        MissingExtraError: `wandb` is not installed.
        InvalidInputError: `every` is negative.

    Example:

    >>> logger = WandbLogger("digits", config={"width": 64})  # doctest: +SKIP
    >>> history = model.fit(x, y, callbacks=[logger])  # doctest: +SKIP
    """

    def __init__(
        self,
        project: str | None = None,
        *,
        name: str | None = None,
        run_id: str | None = None,
        config: Mapping[str, Any] | None = None,
        every: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(run_id=run_id, config=config, every=every)
        try:
            self._wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise MissingExtraError("wandb", "wandb", "to report to Weights & Biases") from error
        self.options = {"project": project, "name": name, **options}
        self._run: Any = None
        self._is_ours = False

    def _start(self, config: dict[str, Any]) -> str:
        self._is_ours = self._wandb.run is None
        if self._is_ours:
            going_on = {"id": self.run_id, "resume": "allow"} if self.run_id else {}
            self._run = self._wandb.init(config=config, **self.options, **going_on)
        else:
            self._run = self._wandb.run
            self._run.config.update(config, allow_val_change=True)
        return str(self._run.id)

    def _send(self, values: Sequence[tuple[Row, dict[str, float]]]) -> None:
        for row, named in values:
            if row.ends_epoch:
                named["epoch/epoch"] = row.epoch
            self._run.log(named, step=row.step)

    def _finish(self, *, has_ended: bool) -> None:
        if self._is_ours:
            self._run.finish(exit_code=0 if has_ended else 1)
        self._run = None

    def _is_sent(self, row: Row) -> bool:
        return row.step < int(self._run.step)  # W&B rejects steps before its last one.
