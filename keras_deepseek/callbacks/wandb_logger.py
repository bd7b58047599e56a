"""Reports a training to Weights & Biases."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from keras_deepseek.callbacks.experiment_logger import ExperimentLogger
from keras_deepseek.callbacks.step_logger import Row
from keras_deepseek.errors import MissingExtraError


class WandbLogger(ExperimentLogger):
    """Reports the logs of a training to Weights & Biases.

    Names are those of W&B's own Keras callback: `batch/loss` and so on by step, `epoch/loss` and
    `epoch/val_loss` with the last step of the epoch. The model's name, its size, the optimizer and
    the length of the training are the run's `config`. A run that is active when a training begins
    is used, and not finished. Else one is started and, at the end, finished; a training that
    `Trainer` resumes from a checkpoint goes on with the same run id. `WANDB_MODE=offline` is W&B's
    own switch to write to a folder alone.

    Args:
        project: string. Defaults to `None`, W&B's own choice.
        name: string. The run's name. Defaults to `None`, one that W&B makes.
        run_id: string. The run to go on with. Defaults to `None`, a new one.
        config: dict. Settings to report beside those above. Defaults to `None`.
        every: integer. Report every so many steps; 0 for epochs alone. Defaults to `1`.
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
        return row.step < int(self._run.step)  # W&B takes no step that is before its last.
