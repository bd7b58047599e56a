"""Training logs in a run record."""

import contextlib
import logging
import os
import platform
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import keras

from keras_deepseek import __version__, backend
from keras_deepseek.artifacts.run_record import Command, RunRecord
from keras_deepseek.backend.keras_private.callbacks import trained_model
from keras_deepseek.backend.keras_private.trainers import class_overrides_train_step
from keras_deepseek.callbacks.step_logger import Row, StepLogger, numeric_logs
from keras_deepseek.callbacks.step_metrics import MetricValues
from keras_deepseek.callbacks.training_pace import TrainingPace
from keras_deepseek.checks import check_file_path
from keras_deepseek.errors import InvalidInputError

_logger = logging.getLogger(__name__)

_NOT_ENDED = "The training ended by an error, or the process ended, before `fit` returned."
_SECONDS_FOR_GIT = 5.0

RequestProfile: TypeAlias = Callable[[Path, Callable[[Any], None]], None]
"""Function that has the coming steps profiled.

It takes the file for the trace, and a function for the result: a dataclass, or the error.
"""


@dataclass(frozen=True)
class RunLink:
    """The arguments, metrics, documents and functions for commands that a trainer records.

    Args:
        step_metrics: The metrics of steps that have ended, in their order.
        arguments: The plain arguments of the training.
        documents: Functions that return a document each, by the document's name. They are called
            once, after the first step.
        request_checkpoint: Function that has a checkpoint taken after the coming step. `None`
            without checkpoints.
        request_profile: Function that has steps profiled. `None` where another process runs them.
    """

    step_metrics: deque[MetricValues] = field(default_factory=deque)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    documents: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    request_checkpoint: Callable[[], None] | None = None
    request_profile: RequestProfile | None = None


class RunRecorder(StepLogger):
    """Stores the logs of a training run in a `RunRecord`.

    Keras's logs of a batch are means since the start of the epoch. `step_loss` is the batch's own
    loss: `Trainer` reads it in the step, otherwise it is computed from these means. Validation is
    stored with the epoch's last step, under Keras's names (`val_loss`, ...). `step_seconds` is the
    time from the start of a step to that of the next. About once a second it adds
    `steps_per_second`, `samples_per_second`, `learning_rate`, `process_memory_bytes` and, on an
    accelerator, `device_memory_bytes`, unless another callback logs them. With `Trainer`, the
    learning rate is that of every step.

    It also stores the run's properties and its state (`"running"`, `"finished"`, `"stopped"` or
    `"failed"`, with the reason), a sign of life once a second, and answers the commands `"stop"`,
    `"checkpoint"` and `"profile"` of the record.

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
    >>> with RunRecord(path, read_only=True) as record:
    ...     [step for step, value in record.scalars("loss")]
    [1, 2]
    """

    _seconds_between_beats = 1.0

    def __init__(
        self, path: str | os.PathLike[str], *, every: int = 1, resume: bool = False
    ) -> None:
        super().__init__(every=every, resume=resume)
        check_file_path("path", path)
        self.path = path
        self._output = os.fspath(path)
        self._pace = TrainingPace()
        self._record: RunRecord | None = None
        self._next_figures = 0.0  # When to log rates and memory again.
        self.link = RunLink()
        """The trainer's side, which `Trainer` replaces by its own."""
        self._labels: dict[str, list[str]] = {}
        self._written: dict[str, list[str]] = {}  # The labels in the record.
        self._mean = (0, 0.0)  # The steps of the epoch, and the mean of their losses.
        self._begun_step: tuple[int, float] | None = None  # The steps before it, and its start.
        self._has_documents = False
        self._asked: list[Command] = []
        self._profile = 0  # The command for the last profile.
        self._has_step_rates = False
        self._outcome: dict[str, Any] = {}
        self._has_ended = threading.Event()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Opens the record and describes the run."""
        super().on_train_begin(logs)
        self._pace = TrainingPace()
        self._labels, self._written = {}, {}
        self._has_documents, self._asked = False, []
        self._profile = 0
        self._has_step_rates = False
        self._outcome = {"state": "failed", "failure": _NOT_ENDED}
        if self._record is None:
            return
        now = time.time()
        self._record.describe(
            {
                "model": self.model.name,
                "parameters": self.model.count_params() if self.model.built else None,
                "backend": keras.backend.backend(),
                "keras": keras.__version__,
                "epochs": self.params.get("epochs"),
                "steps_per_epoch": self.params.get("steps"),
                "arguments": self.link.arguments,
                "state": "running",
                "failure": None,
                "pid": os.getpid(),
                "host": platform.node(),
                "started": now,
                "ended": None,
                "heartbeat": now,
                "versions": _find_versions(),
                "device": backend.current().devices.read_device_name() or platform.machine(),
                "commit": _find_commit(),
            }
        )
        self._has_ended = threading.Event()
        threading.Thread(target=self._beat, args=(self._has_ended,), daemon=True).start()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts counting the steps of an epoch."""
        super().on_epoch_begin(epoch, logs)
        self._pace.begin_epoch()
        self.link.step_metrics.clear()
        self._mean, self._begun_step = (0, 0.0), None

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Measures the pace, writes documents once, and carries out commands, before a step."""
        super().on_train_batch_begin(batch, logs)
        self._pace.before_step(trained_model(self), batch)
        self._time_step(self._before_epoch + batch)
        if self._begun_step is not None and not self._has_documents and batch:
            self._write_documents()
        if self._asked:
            self._obey(self._before_epoch + batch + 1)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Stores the logs of the epoch, including validation."""
        figures = {**self._figures(of_epoch=True), **(logs or {}), "epoch": epoch + 1}
        if self._has_step_rates:  # The pace, and Keras, have read the rate at another step.
            figures.pop("learning_rate", None)
        super().on_epoch_end(epoch, figures)
        if not self._has_documents:
            self._write_documents()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Stores the waiting logs and the end of the run, and closes the record."""
        is_stopped = self._outcome.get("state") == "stopped"
        self._outcome = {"state": "stopped" if is_stopped else "finished", "failure": None}
        super().on_train_end(logs)

    def report_failure(self, error: BaseException) -> None:
        """Makes an error the reason for which the run ends; an exit or Ctrl-C only stops it."""
        is_failure = isinstance(error, Exception)
        self._outcome = {
            "state": "failed" if is_failure else "stopped",
            "failure": f"{type(error).__name__}: {error}" if is_failure else None,
        }

    @property
    def trace_file(self) -> Path:
        """The file for the trace of a profile, beside the record."""
        return Path(self.path).with_suffix(".profile.json.gz")

    def write_document(self, name: str, content: Any) -> None:
        """Stores a document in the run record, during a training or between two.

        Args:
            name: string. The name of the document.
            content: A value that JSON can hold.
        """
        with self._lock:
            if self._record is not None:
                self._record.write_document(name, content)
                return
        with RunRecord(self.path) as record:
            record.write_document(name, content)

    def _add(self, batch: int, logs: dict[str, float]) -> None:
        now = self._pace.after_step(batch)
        step_values = self._read_step(batch, logs)
        if now >= self._next_figures:
            self._next_figures = now + 1.0
            logs = {**self._figures(), **logs}
        super()._add(batch, {**logs, **step_values})

    def _read_step(self, batch: int, logs: dict[str, float]) -> dict[str, Any]:
        """Returns the metrics of a step: those of the trainer's step, or from Keras's means."""
        if self.link.step_metrics:
            metrics = self.link.step_metrics.popleft()
            self._labels = metrics.labels.of_vectors
            scalars = metrics.scalars()
            self._has_step_rates = "learning_rate" in scalars
            return {**scalars, **metrics.vectors()}
        if "loss" not in logs or class_overrides_train_step(trained_model(self)):
            return {}  # An own step may log anything as its loss.
        (old_number, old_mean), self._mean = self._mean, (batch + 1, float(logs["loss"]))
        number, mean = self._mean
        # In a training that is resumed within an epoch, the first mean is over unknown steps.
        is_known = old_number or batch < trained_model(self).steps_per_execution
        if not is_known:
            return {}
        # A mean times its number of steps is their sum: this is the sum of the new steps.
        new_sum = mean * number - old_mean * old_number
        return {"step_loss": new_sum / (number - old_number)}

    def _figures(self, *, of_epoch: bool = False) -> dict[str, float]:
        """Returns the figures of the pace, and `memory_bytes`: the device's if it is counted."""
        figures = self._pace.figures(of_epoch=of_epoch)
        memory = figures.get("device_memory_bytes", figures.get("process_memory_bytes"))
        return figures if memory is None else {**figures, "memory_bytes": memory}

    def _time_step(self, step: int) -> None:
        """Stores the seconds since the last step began, if an entry is due after `step` steps."""
        now = time.perf_counter()
        if self._begun_step is not None:
            begun, started = self._begun_step
            if self.every and step // self.every > begun // self.every:
                seconds = {"step_seconds": (now - started) / (step - begun)}
                with self._lock:
                    self._rows.append(
                        Row(step, self._epoch, seconds, time.time(), ends_epoch=False)
                    )
        self._begun_step = step, now

    def _write_documents(self) -> None:
        """Writes the trainer's documents, such as the graph of the model, once in a run."""
        self._has_documents = True
        if self.model is None:  # On JAX, `self.model` writes the values back to the variables.
            return
        for name, make in self.link.documents.items():
            try:
                content = make()
            except Exception:
                _logger.warning("The run record has no document %r.", name, exc_info=True)
                continue
            self.write_document(name, content)
        if self._begun_step is not None:  # That time is not the coming step's.
            self._begun_step = self._begun_step[0], time.perf_counter()

    def _beat(self, has_ended: threading.Event) -> None:
        """Writes a sign of life, and looks for commands, once a second until the training ends."""
        while not has_ended.is_set():
            with self._lock:
                if has_ended.is_set() or self._record is None:
                    return
                with contextlib.suppress(InvalidInputError):  # The next write of logs raises it.
                    self._record.describe({"heartbeat": time.time()})
                    self._asked = self._record.commands(unanswered=True)
            has_ended.wait(self._seconds_between_beats)

    def _obey(self, step: int) -> None:
        """Carries out the commands that wait, before a step."""
        with self._lock:
            commands, self._asked = self._asked, []
            for command in commands:
                if self._record is None or command.id == self._profile:
                    continue  # It was read again before its answer.
                if (answer := self._carry_out(command, step)) is not None:
                    self._record.answer(command.id, answer)

    def _carry_out(self, command: Command, step: int) -> str | None:
        """Carries out a command; returns its answer, or `None` if that comes later."""
        name = command.name
        if name == "profile":
            return self._begin_profile(command)
        if name == "stop":
            trained_model(self).stop_training = True
            self._outcome["state"] = "stopped"
            return f"stops after step {step}"
        if name != "checkpoint":
            return f"unknown command {name!r}; known: stop, checkpoint, profile"
        if self.link.request_checkpoint is None:
            return "no checkpoint: the training has no checkpoint_dir"
        self.link.request_checkpoint()
        return f"takes a checkpoint after step {step}"

    def _begin_profile(self, command: Command) -> str | None:
        """Has the coming steps profiled; returns an answer only if that is not possible."""
        if self.link.request_profile is None:
            return "no profile: this process does not run the steps by a Trainer"
        try:
            self.link.request_profile(self.trace_file, self._receive_profile)
        except InvalidInputError as error:
            return f"no profile: {error}"
        self._profile = command.id
        return None

    def _receive_profile(self, result: Any) -> None:
        """Stores a profile, and answers the command for it."""
        if isinstance(result, Exception):
            _logger.warning("The steps could not be profiled: %s", result)
            answer = f"no profile: {result}"
        else:
            self.write_document("profile", asdict(result))
            answer = f"profiled {result.steps} steps"
        with self._lock:
            if self._record is not None:
                self._record.answer(self._profile, answer)
            self._begun_step = None  # The end of the profile took time that is not the step's.

    def _open(self) -> None:
        self._record = RunRecord(self.path)

    def _write(self, rows: Sequence[Row]) -> None:
        if self._record is None:
            return
        self._record.log_steps([(row.step, numeric_logs(row.logs)) for row in rows])
        vectors = [
            (row.step, {name: row.logs[name] for name in self._labels if name in row.logs})
            for row in rows
        ]
        if self._labels:
            self._record.log_vectors(vectors)
        for name, labels in self._labels.items():
            if self._written.get(name) != labels:
                self._record.write_document(f"vector:{name}", {"labels": labels})
        self._written = dict(self._labels)

    def _close(self) -> None:
        self._has_ended.set()
        if self._record is not None:
            if self._outcome:  # Otherwise the record holds another run, and was refused.
                for command in self._record.commands(unanswered=True):
                    self._record.answer(command.id, "nothing: the training has ended")
                self._record.describe({**self._outcome, "ended": time.time()})
            self._outcome = {}
            self._record.close()
            self._record = None

    def _last_step(self) -> int | None:
        return None if self._record is None else self._record.last_step()

    def _discard_after(self, step: int) -> None:
        if self._record is not None:
            self._record.discard_after(step)


def _find_versions() -> dict[str, str]:
    names = ("keras_deepseek", "keras", keras.backend.backend())
    versions = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {**versions, "keras_deepseek": __version__}


def _find_commit() -> str | None:
    """Returns the commit of the working directory, or `None` outside of a Git repository."""
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=_SECONDS_FOR_GIT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
