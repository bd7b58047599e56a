"""The checkpoints of a trainer: their folder, when they are taken, and resuming from one.

Where several processes train, rank 0 reads and writes the folder; the others too if the state is
divided among them.
"""

import functools
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal

import keras
import numpy as np

from keras_deepseek import backend
from keras_deepseek.artifacts.checkpoint import Checkpoint
from keras_deepseek.artifacts.checkpoint_folder import CheckpointFolder
from keras_deepseek.backend.data.random_state import read_random_state
from keras_deepseek.backend.keras_private.trainers import read_learning_rate
from keras_deepseek.backend.processes.processes import Processes, ask_rank_0
from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.checkpoints.checkpointed_callbacks import (
    CheckpointedCallbacks,
    CheckpointWriter,
)
from keras_deepseek.training.checkpoints.streamed_training import row_share, streamed_training
from keras_deepseek.training.checkpoints.training_state import write_model_and_optimizers
from keras_deepseek.training.cluster.stop_signal import StopSignal
from keras_deepseek.training.data.position_data import position_data
from keras_deepseek.training.step.gradients.gradient_residual import GradientResidual
from keras_deepseek.training.step.gradients.optimizer_parts import OptimizerParts

_logger = logging.getLogger(__name__)


Best = tuple[str, Literal["min", "max"]] | tuple[str, Literal["min", "max"], int]


@dataclass(frozen=True)
class CheckpointOptions:
    """The options of a trainer's checkpoints, checked. `Trainer` documents them for users."""

    checkpoint_dir: str | os.PathLike[str] | None = None
    checkpoint_every: int | None = None
    keep_last: int = 2
    keep_best: Best | None = None

    def __post_init__(self) -> None:
        if self.checkpoint_dir is None:
            for option in fields(self):
                if getattr(self, option.name) != option.default:
                    raise InvalidInputError(
                        f"`{option.name}` needs a folder for checkpoints: pass "
                        "Trainer(..., checkpoint_dir=...)."
                    )
            return
        is_path = isinstance(self.checkpoint_dir, str | os.PathLike)
        if not is_path or not os.fspath(self.checkpoint_dir):
            raise InvalidInputError(
                f"`checkpoint_dir` must be the path of a folder; received {self.checkpoint_dir!r}."
            )
        if self.checkpoint_every is not None:
            check_integer("checkpoint_every", self.checkpoint_every)
        check_integer("keep_last", self.keep_last)
        self.best()

    @property
    def folder(self) -> str | os.PathLike[str]:
        """The folder of the checkpoints."""
        if self.checkpoint_dir is None:
            raise RuntimeError("There is no folder for checkpoints.")
        return self.checkpoint_dir

    def best(self) -> tuple[str | None, Literal["min", "max"], int]:
        """Returns `keep_best` as log, `"min"` or `"max"`, and number of checkpoints to keep."""
        match self.keep_best:
            case None:
                return None, "min", 0
            case (str(monitor), "min" | "max" as best_is):
                return monitor, best_is, 1
            case (str(monitor), "min" | "max" as best_is, int(most)) if most > 0:
                return monitor, best_is, most
        raise InvalidInputError(
            "`keep_best` must be the name of a log, 'min' or 'max', and how many checkpoints to "
            f"keep, 1 or more, as in ('val_loss', 'min', 1); received {self.keep_best!r}."
        )


class Checkpoints:
    """Writes the checkpoints of a trainer, and resumes or rolls back to them.

    Args:
        seed: integer. The seed for the order of the data, or `None` for a random one.
    """

    def __init__(
        self,
        options: CheckpointOptions,
        processes: Processes,
        residual: GradientResidual | None,
        parts: OptimizerParts | None,
        seed: int | None,
    ) -> None:
        monitor, best_is, num_best = options.best()
        self._processes = processes
        self._residual = residual
        self._parts = parts
        self._seed = seed
        self._every = options.checkpoint_every
        self._monitor = monitor
        self._folder = CheckpointFolder(
            options.folder, keep_last=options.keep_last, keep_best=num_best, best_is=best_is
        )
        self._writer: CheckpointWriter | None = None
        self._callbacks: CheckpointedCallbacks | None = None  # Of the running training.
        self._given_rate: float | None = None  # The learning rate before the training.

    def read(self, step: Literal["best"] | None = None) -> Checkpoint | None:
        """Returns the best checkpoint, or the newest that can be read, or `None` if there is none.

        Raises:
            CheckpointError: There are checkpoints, and none of them can be read.
            InvalidInputError: It was made on another backend, none was kept as the best, or a file
                of a rank is missing or is of another checkpoint.
        """
        if step not in (None, "best"):
            raise InvalidInputError(f'`step` must be "best" or None; received {step!r}.')
        if self._writer is not None:
            self._writer.finish()
        self._processes.gather(np.zeros(0))  # Waits until all processes have written.
        find = self._folder.latest if step is None else self._folder.best
        checkpoint = ask_rank_0(self._processes, find)
        backend = keras.backend.backend()
        if checkpoint is not None and checkpoint.state["backend"] != backend:
            raise InvalidInputError(
                f"The checkpoints in {str(self._folder.path)!r} were made on "
                f"{checkpoint.state['backend']}, and Keras runs on {backend}. Set KERAS_BACKEND to "
                "the same backend, or name another folder."
            )
        return checkpoint

    def roll_back(self, model: keras.Model) -> int | None:
        """Restores a model and its optimizer from the newest checkpoint, during a training.

        Returns:
            The step of the checkpoint, or `None` if there is none yet.
        """
        checkpoint = self.read()
        if checkpoint is None:
            return None
        write_model_and_optimizers(model, checkpoint.state["variables"], self._parts)
        if self._residual is not None:
            self._residual.write(model.trainable_variables, checkpoint.state.get("residual"))
        return checkpoint.step

    def request(self) -> None:
        """Has a checkpoint taken after the coming step of the running training."""
        if self._callbacks is not None:
            self._callbacks.is_requested = True

    @contextmanager
    def training(
        self,
        model: keras.Model,
        arguments: Mapping[str, Any],
        resumed: Checkpoint | None,
        policy: keras.DTypePolicy | None,
    ) -> Iterator[dict[str, Any]]:
        """Context manager that sets up a training with checkpoints, and yields arguments of `fit`.

        Raises:
            CheckpointError: A checkpoint can't be written.
            InvalidInputError: The folder holds another training, or the model or the data differ
                from those of the checkpoint.
        """
        ask_rank_0(self._processes, functools.partial(self._prepare_folder, resumed))
        if self._given_rate is None:
            self._given_rate = _read_constant_rate(model)
        # Creates all random generators now: one that is created on first use would be created at
        # another step in a training that was interrupted.
        read_random_state()
        seed = self._choose_seed(resumed)
        precision = (policy or model.dtype_policy).name
        options, data = position_data(arguments, seed, row_share(self._processes))
        if resumed is not None:
            self._continue_from(resumed, model, options, precision)
        writer = self._writer = CheckpointWriter(self._folder)
        stop_signal = StopSignal()
        make_callbacks = functools.partial(
            CheckpointedCallbacks,
            writer=writer,
            stop_signal=stop_signal,
            every=self._every,
            monitor=self._monitor,
            resumed=resumed,
            extra_state={"seed": seed, "precision": precision, "given_rate": self._given_rate},
            validates=options.get("validation_data") is not None,
            residual=self._residual,
            parts=self._parts,
        )
        position = None if resumed is None else resumed.state["data"]
        streamed = streamed_training(
            model, options, data, self._processes, position, make_callbacks
        )
        with streamed as fit_arguments, stop_signal:
            self._callbacks = fit_arguments["callbacks"]
            try:
                yield fit_arguments
            finally:
                self._callbacks = None
                writer.finish()
            if stop_signal.received:  # It came after the last step, and everything is saved.
                raise SystemExit(0)

    def _choose_seed(self, resumed: Checkpoint | None) -> int:
        if resumed is not None:
            return int(resumed.state["seed"])
        if self._seed is not None:
            return self._seed
        return int(self._processes.broadcast(backend.current().step.draw_seed()))

    def _continue_from(
        self, resumed: Checkpoint, model: keras.Model, options: dict[str, Any], precision: str
    ) -> None:
        """Sets the first epoch among the options of `fit`, and logs how the training continues."""
        epochs, num_done = options["epochs"], resumed.state["epoch"]
        options["initial_epoch"] = epochs if has_ended(resumed, epochs) else num_done
        if num_done >= epochs:
            _logger.warning(
                "Nothing is left to train: the checkpoint of step %d was made at the end of epoch "
                "%d, and epochs=%d. To train further, pass a larger `epochs`.",
                *(resumed.step, num_done, epochs),
            )
        elif resumed.state["is_stopped"]:
            _logger.warning(
                "The training ended after step %d, before its last epoch: a callback such as "
                "EarlyStopping stopped it, or its data ended. No step is added. To train further, "
                "start another training from its weights.",
                resumed.step,
            )
        else:
            _logger.info("The training continues after step %d.", resumed.step)
        self._compare_rates(model, resumed.state)
        checkpoint_precision = resumed.state.get("precision", precision)
        if checkpoint_precision != precision:
            _logger.warning(
                "The training began in %s and continues in %s: its results will differ from those "
                "of a training that was not interrupted.",
                *(checkpoint_precision, precision),
            )

    def _compare_rates(self, model: keras.Model, state: Mapping[str, Any]) -> None:
        """Logs a warning if the optimizer was given another learning rate than before.

        A rate that the training itself has changed, for example by `ReduceLROnPlateau`, does not
        count as another one.
        """
        initial, reached = state.get("given_rate"), state.get("rate")
        now = _read_constant_rate(model)
        if now not in (initial, reached) and None not in (now, initial, reached):
            _logger.warning(
                "The training began with a learning rate of %g and continues with %g, the rate of "
                "its checkpoint. The optimizer's rate, %g, is not used. To change the rate during "
                "a training, use callbacks.LRScheduler, or set it in a loop over steps().",
                *(initial, reached, now),
            )
        self._given_rate = initial

    def _prepare_folder(self, resumed: Checkpoint | None) -> None:
        """Raises an error if the folder can't be written, or holds another training."""
        self._folder.check_writable()
        if resumed is not None:
            # Newer checkpoints can't be read, or are those of epochs that are trained again.
            self._folder.discard_after(resumed.step)
            return
        if steps := self._folder.steps():
            raise InvalidInputError(
                f"{str(self._folder.path)!r} holds the checkpoints of a training, the last of step "
                f"{steps[-1]}. Continue it with fit(..., resume=True), or name another folder."
            )
        self._folder.discard_after(-1)  # The first checkpoint of a training that was killed.


def has_ended(resumed: Checkpoint, epochs: int) -> bool:
    """Returns True if a training of `epochs` epochs has no step left after a checkpoint."""
    return bool(resumed.state["is_stopped"] or resumed.state["epoch"] >= epochs)


def _read_constant_rate(model: keras.Model) -> float | None:
    is_constant = isinstance(model.optimizer.learning_rate, keras.Variable)
    return read_learning_rate(model) if is_constant else None
