"""Training logs in a tracking service: Weights & Biases or MLflow."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_deepseek.backend.keras_private.optimizers import plain_optimizer
from keras_deepseek.callbacks.step_logger import Row, StepLogger, numeric_logs
from keras_deepseek.errors import MissingExtraError


class ExperimentLogger(StepLogger):
    """Reports the logs of a training, its settings, and whether it succeeded.

    A subclass has `_start`, `_send`, `_finish` and `_is_sent`. Logs of steps are named `batch/loss`
    and so on, logs of epochs `epoch/loss` and `epoch/val_loss`; both are sent by step. A checkpoint
    holds the run's id. A resumed training continues that run, and does not repeat the reports of
    an earlier process.
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
        run_config = {
            "model": self.model.name,
            "parameters": self.model.count_params() if self.model.built else None,
            "optimizer": type(plain_optimizer(self.model.optimizer)).__name__,
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
        """Returns True if an earlier process has sent a row."""
        raise NotImplementedError


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
            run_to_continue = {"id": self.run_id, "resume": "allow"} if self.run_id else {}
            self._run = self._wandb.init(config=config, **self.options, **run_to_continue)
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


_METRICS_A_CALL = 1000  # The most metrics that MLflow's server takes at once.
_DEFAULT_EXPERIMENT = "0"  # The id that MLflow gives it.


class MlflowLogger(ExperimentLogger):
    """Reports the logs of a training to MLflow.

    Metrics are named `batch/loss` and so on, `epoch/loss` and `epoch/val_loss`, all by step. The
    run's parameters include the model's name, its size, the optimizer and the length of the
    training. If a run is active when the training begins (`with mlflow.start_run():`), it is used
    and not ended. Otherwise a run is created, and marked as finished or failed at the end. A
    training that `Trainer` resumes from a checkpoint continues the same run. Metrics are sent in
    groups.

    Args:
        experiment: string. The name of the experiment, which is created if missing. Defaults to
            `None`: MLflow's default experiment.
        name: string. The run's name. Defaults to `None`: MLflow makes one.
        run_id: string. The run to continue. Defaults to `None`: a new run.
        config: dict. Further parameters to report. Defaults to `None`.
        every: integer. The number of steps between two reports; 0 reports epochs only. Defaults to
            `1`.
        tracking_uri: string. Where MLflow writes, such as `"sqlite:///runs.db"`. Defaults to
            `None`: as set by `mlflow.set_tracking_uri` or `MLFLOW_TRACKING_URI`.

    Raises:
        MissingExtraError: `mlflow` is not installed.
        InvalidInputError: `every` is negative.

    Example:

    >>> logger = MlflowLogger("digits", tracking_uri="sqlite:///runs.db")  # doctest: +SKIP
    >>> history = model.fit(x, y, callbacks=[logger])  # doctest: +SKIP
    """

    def __init__(
        self,
        experiment: str | None = None,
        *,
        name: str | None = None,
        run_id: str | None = None,
        config: Mapping[str, Any] | None = None,
        every: int = 1,
        tracking_uri: str | None = None,
    ) -> None:
        super().__init__(run_id=run_id, config=config, every=every)
        try:
            self._mlflow: Any = importlib.import_module("mlflow")
            self._entities: Any = importlib.import_module("mlflow.entities")
        except ImportError as error:
            raise MissingExtraError("mlflow", "mlflow", "to report to MLflow") from error
        self.experiment = experiment
        self.name = name
        self.tracking_uri = tracking_uri
        self._client: Any = None
        self._is_ours = False
        self._sent: dict[bool, int] = {}  # The last sent step, by whether a row ends an epoch.

    def _start(self, config: dict[str, Any]) -> str:
        """Chooses the run: an active one, else `run_id`, else a new one; returns its id."""
        self._client = self._mlflow.MlflowClient(self.tracking_uri)
        active = self._mlflow.active_run()
        self._is_ours = active is None
        run_id = self.run_id if active is None else active.info.run_id
        if self.run_id == run_id and run_id is not None:
            self._find_sent_steps(run_id)
            return str(run_id)
        if run_id is None:
            run_id = self._client.create_run(self._experiment_id(), run_name=self.name).info.run_id
        self._sent = {}
        params = [self._entities.Param(name, str(value)) for name, value in config.items()]
        self._client.log_batch(run_id, params=params)
        return str(run_id)

    def _find_sent_steps(self, run_id: str) -> None:
        """Finds the last steps that an earlier process has sent."""
        self._sent = {}
        for name in self._client.get_run(run_id).data.metrics:
            ends_epoch = name.startswith("epoch/")
            if ends_epoch not in self._sent and name.startswith(("epoch/", "batch/")):
                history = self._client.get_metric_history(run_id, name)
                self._sent[ends_epoch] = max(metric.step for metric in history)
        if self._is_ours:
            self._client.update_run(run_id, status="RUNNING")

    def _experiment_id(self) -> str:
        if self.experiment is None:
            return _DEFAULT_EXPERIMENT
        experiment = self._client.get_experiment_by_name(self.experiment)
        if experiment is not None:
            return str(experiment.experiment_id)
        return str(self._client.create_experiment(self.experiment))

    def _send(self, values: Sequence[tuple[Row, dict[str, float]]]) -> None:
        metrics = [
            self._entities.Metric(name, value, round(row.time * 1000), row.step)
            for row, named in values
            for name, value in named.items()
        ]
        for start in range(0, len(metrics), _METRICS_A_CALL):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + _METRICS_A_CALL])

    def _finish(self, *, has_ended: bool) -> None:
        if self._is_ours:
            self._client.set_terminated(self.run_id, status="FINISHED" if has_ended else "FAILED")

    def _is_sent(self, row: Row) -> bool:
        return row.step <= self._sent.get(row.ends_epoch, 0)
