"""What a trainer knows of its checkpoints: where they are, how often, and how to go on from one.

Of several processes, rank 0 alone reads and writes the folder.
"""

import functools
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.artifacts.checkpoint import Checkpoint
from keras_deepseek.artifacts.checkpoint_folder import CheckpointFolder
from keras_deepseek.backend.data.random_state import read_random_state
from keras_deepseek.backend.keras_private.trainers import read_learning_rate
from keras_deepseek.backend.processes.processes import Processes, ask_rank_0
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.checkpoints.checkpoint_options import CheckpointOptions
from keras_deepseek.training.checkpoints.checkpoint_writer import CheckpointWriter
from keras_deepseek.training.checkpoints.checkpointed_callbacks import CheckpointedCallbacks
from keras_deepseek.training.checkpoints.streamed_training import own_share, streamed_training
from keras_deepseek.training.checkpoints.training_state import write_training
from keras_deepseek.training.cluster.stop_signal import StopSignal
from keras_deepseek.training.data.position_data import position_data
from keras_deepseek.training.step.gradients.gradient_residual import GradientResidual

_logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a trainer.

    Args:
        options: `CheckpointOptions` with a folder.
        processes: `Processes` that train together.
        residual: `GradientResidual` of their gradients. Defaults to `None`.
    """

    def __init__(
        self,
        options: CheckpointOptions,
        processes: Processes,
        residual: GradientResidual | None = None,
    ) -> None:
        monitor, best_is, num_best = options.best()
        self._processes = processes
        self._residual = residual
        self._every = options.checkpoint_every
        self._monitor = monitor
        self._folder = CheckpointFolder(
            options.folder, keep_last=options.keep_last, keep_best=num_best, best_is=best_is
        )
        self._writer: CheckpointWriter | None = None
        self._given_rate: float | None = None  # That of the optimizer as it was given.

    def latest(self) -> Checkpoint | None:
        """Returns the newest checkpoint that is whole, `None` where there is none.

        Raises:
            CheckpointError: There are checkpoints, and all of them are torn.
            InvalidInputError: It was made on another backend.
        """
        checkpoint = ask_rank_0(self._processes, self._folder.latest)
        backend = keras.backend.backend()
        if checkpoint is not None and checkpoint.state["backend"] != backend:
            raise InvalidInputError(
                f"The checkpoints in {str(self._folder.path)!r} were made on "
                f"{checkpoint.state['backend']}, and Keras runs on {backend}. Set KERAS_BACKEND, "
                "or name another folder."
            )
        return checkpoint

    def roll_back(self, model: keras.Model) -> int | None:
        """Puts a model that is trained, and its optimizer, to the newest checkpoint.

        Returns:
            The step of it; `None` where there is none yet.
        """
        if self._writer is not None:
            self._writer.finish()
        checkpoint = self.latest()
        if checkpoint is None:
            return None
        write_training(model, checkpoint.state["variables"])
        if self._residual is not None:
            self._residual.write(model.trainable_variables, checkpoint.state.get("residual"))
        return checkpoint.step

    @contextmanager
    def training(
        self,
        model: keras.Model,
        arguments: Mapping[str, Any],
        resumed: Checkpoint | None,
        seed: int | None,
        policy: keras.DTypePolicy | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yields the arguments for `model.fit` in place of those that a user gave.

        Args:
            model: `keras.Model`, compiled.
            arguments: What the user gave to `fit`.
            resumed: `Checkpoint` to go on from, or `None`.
            seed: integer. What the order of the data is drawn by, or `None` for any.
            policy: `keras.DTypePolicy` that the steps compute by. Defaults to `None`, the model's.

        Raises:
            CheckpointError: A checkpoint could not be written.
            InvalidInputError: The folder holds a training that this one would mix with, or model or
                data are not those of the checkpoint.
        """
        ask_rank_0(self._processes, functools.partial(self._prepare_folder, resumed))
        if self._given_rate is None:
            self._given_rate = _read_constant_rate(model)
        # Generators that are made when they are first asked for would be made at another step in a
        # training that was interrupted.
        read_random_state()
        if resumed is not None:
            seed = resumed.state["seed"]
        elif seed is None:
            seed = self._processes.broadcast(backend.current().step.draw_seed())
        precision = (policy or model.dtype_policy).name
        options, data = position_data(arguments, seed, own_share(self._processes))
        position = None
        if resumed is not None:
            position = resumed.state["data"]
            is_over = resumed.state["is_stopped"]
            options["initial_epoch"] = options["epochs"] if is_over else resumed.state["epoch"]
            if is_over:
                _logger.warning(
                    "The training had ended after step %d, before its last epoch: a callback, as "
                    "EarlyStopping, or the end of its data had stopped it. No step is added. To "
                    "train on, begin another training from its weights.",
                    resumed.step,
                )
            else:
                _logger.info("The training goes on after step %d.", resumed.step)
            self._compare_rates(model, resumed.state)
            begun_in = resumed.state.get("precision", precision)
            if begun_in != precision:
                _logger.warning(
                    "The training began in %s and goes on in %s: it does not end in the numbers "
                    "of one that was left alone.",
                    *(begun_in, precision),
                )
        writer = self._writer = CheckpointWriter(self._folder)
        stop_signal = StopSignal()
        make_callbacks = functools.partial(
            CheckpointedCallbacks,
            writer=writer,
            stop_signal=stop_signal,
            every=self._every,
            monitor=self._monitor,
            resumed=resumed,
            begun={"seed": seed, "precision": precision, "given_rate": self._given_rate},
            validates=options.get("validation_data") is not None,
            residual=self._residual,
        )
        streamed = streamed_training(
            model, options, data, self._processes, position, make_callbacks
        )
        with streamed as given, stop_signal:
            try:
                yield given
            finally:
                writer.finish()
            if stop_signal.received:  # After the last step, and all is saved.
                raise SystemExit(0)

    def _compare_rates(self, model: keras.Model, state: Mapping[str, Any]) -> None:
        """Says which learning rate holds where the optimizer has another one than it began with.

        What it has become by the training itself, as by `ReduceLROnPlateau`, is no other one.
        """
        begun, reached = state.get("given_rate"), state.get("rate")
        now = _read_constant_rate(model)
        if now not in (begun, reached) and None not in (now, begun, reached):
            _logger.warning(
                "The training began with a learning rate of %g, and its checkpoint goes on with "
                "%g; the optimizer has %g, which is not used. To change the rate of a training, "
                "give callbacks.LRScheduler, or set it in a loop over steps().",
                *(begun, reached, now),
            )
        self._given_rate = begun

    def _prepare_folder(self, resumed: Checkpoint | None) -> None:
        self._folder.check_writable()
        if resumed is not None:
            self._folder.discard_after(resumed.step)  # They are torn.
        elif steps := self._folder.steps():
            raise InvalidInputError(
                f"{str(self._folder.path)!r} holds the checkpoints of a training, the last of step "
                f"{steps[-1]}. Go on from it with fit(..., resume=True), or name another folder."
            )


def _read_constant_rate(model: keras.Model) -> float | None:
    """Returns the learning rate, `None` where a schedule computes it: checkpoints hold none."""
    is_constant = isinstance(model.optimizer.learning_rate, keras.Variable)
    return read_learning_rate(model) if is_constant else None
