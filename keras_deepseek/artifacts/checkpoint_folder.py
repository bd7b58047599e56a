"""The folder with the checkpoints of one training."""

import contextlib
import logging
import math
import os
import re
import tempfile
from pathlib import Path
from typing import Literal

from keras_deepseek.artifacts.checkpoint import PARTIAL, Checkpoint
from keras_deepseek.errors import CheckpointError, InvalidInputError

_logger = logging.getLogger(__name__)
_NAME = re.compile(r"step_(\d+)\.checkpoint")


class CheckpointFolder:
    """A folder with one file for each checkpoint, as `step_0000000120.checkpoint`.

    Args:
        path: string or path. Made if it is missing.
        keep_last: integer. The number of newest checkpoints to keep. Defaults to `2`: if a fault of
            the disk damages the newest one, the one before it is used.
        keep_best: integer. The number of checkpoints with the best scores to keep beside them.
            Defaults to `0`.
        best_is: `"min"` or `"max"`. Whether a lower or a higher score is better. Defaults to
            `"min"`.

    Raises:
        InvalidInputError: A file stands at the path.

    Example:

    >>> import tempfile
    >>> folder = CheckpointFolder(tempfile.mkdtemp(), keep_last=1)
    >>> for step in (10, 20):
    ...     folder.write(Checkpoint(step, {"loss": 0.5}))
    >>> folder.steps(), folder.latest().step
    ([20], 20)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        keep_last: int = 2,
        keep_best: int = 0,
        best_is: Literal["min", "max"] = "min",
    ) -> None:
        self.path = Path(path)
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.best_is = best_is
        if self.path.exists() and not self.path.is_dir():
            raise InvalidInputError(
                f"{str(self.path)!r} is a file; expected a folder for checkpoints. Name another."
            )
        self._scores: dict[int, float] = {}
        for step in self.steps() if keep_best else ():
            with contextlib.suppress(CheckpointError):
                self._remember(step, Checkpoint.read_score(self._file(step)))

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints in the folder, in ascending order."""
        names = (path.name for path in self.path.iterdir()) if self.path.is_dir() else ()
        return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)

    def read(self, step: int) -> Checkpoint:
        """Reads the checkpoint of a step.

        Args:
            step: integer. One of `steps()`.

        Returns:
            A `Checkpoint`.

        Raises:
            CheckpointError: The file is missing or damaged.
        """
        return Checkpoint.read(self._file(step))

    def latest(self) -> Checkpoint | None:
        """Reads the newest checkpoint that is not damaged.

        Returns:
            A `Checkpoint`, or `None` if the folder has none.

        Raises:
            CheckpointError: There are checkpoints, and all of them are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.read(step)
            except CheckpointError as error:
                is_last = step == steps[0]
                _logger.warning("%s%s", error, "" if is_last else " The one before it is tried.")
        if steps:
            raise CheckpointError(
                f"None of the checkpoints in {str(self.path)!r}, of the steps {steps}, can be "
                "read. Remove them to start again."
            )
        return None

    def is_among_best(self, score: float) -> bool:
        """Returns whether a checkpoint with this score would be kept as one of the best."""
        best = self._best()
        if len(best) < self.keep_best:
            return math.isfinite(score)
        return any(self._loss(score) < self._loss(self._scores[step]) for step in best)

    def write(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint, and then removes those that are no longer kept.

        Args:
            checkpoint: `Checkpoint`.

        Raises:
            CheckpointError: The checkpoint can't be written. Nothing was removed.
        """
        self._make()
        checkpoint.write(self._file(checkpoint.step))
        self._remember(checkpoint.step, checkpoint.score)
        self._prune()

    def check_writable(self) -> None:
        """Makes the folder and writes into it, so that a long training does not fail later.

        Raises:
            CheckpointError: The folder can't be made or written to.
        """
        self._make()
        try:
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise CheckpointError(
                f"The folder for checkpoints {str(self.path)!r} can't be written to: {error}."
            ) from error

    def discard_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, which a training that resumes here writes again.

        Args:
            step: integer.
        """
        for later in self.steps():
            if later > step:
                self._remove(later)

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"No folder for checkpoints can be made at {str(self.path)!r}: {error}."
            ) from error

    def _prune(self) -> None:
        steps_to_keep = {*self.steps()[-self.keep_last :], *self._best()}
        for step in self.steps():
            if step not in steps_to_keep:
                self._remove(step)
        for leftover in self.path.glob(f"step_*.checkpoint{PARTIAL}"):
            leftover.unlink(missing_ok=True)  # Its process was killed during a write.

    def _best(self) -> list[int]:
        """Returns the training steps with the best scores, the earlier first of equal ones."""
        ranked = sorted(self._scores, key=lambda step: (self._loss(self._scores[step]), step))
        return ranked[: self.keep_best]

    def _loss(self, score: float) -> float:
        return score if self.best_is == "min" else -score

    def _remember(self, step: int, score: float | None) -> None:
        if score is not None and math.isfinite(score):
            self._scores[step] = score

    def _remove(self, step: int) -> None:
        self._file(step).unlink(missing_ok=True)
        self._scores.pop(step, None)

    def _file(self, step: int) -> Path:
        return self.path / f"step_{step:010d}.checkpoint"
