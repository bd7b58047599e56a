"""The folder with the checkpoints of one training."""

import contextlib
import dataclasses
import logging
import math
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from keras_deepseek.artifacts.checkpoint import Checkpoint, part_name
from keras_deepseek.artifacts.staging_folder import flush_to_disk
from keras_deepseek.errors import CheckpointError, InvalidInputError

_logger = logging.getLogger(__name__)
_ENDING = ".checkpoint"
_NAME = re.compile(r"step_(\d+)\.checkpoint")
_ANY_NAME = re.compile(r"step_(\d+)\..*")
"""The name of a file of a checkpoint, also of one that is not complete."""


class CheckpointFolder:
    """A folder with one file for each checkpoint, as `step_0000000120.checkpoint`.

    Where processes write a checkpoint together, it has further files, as
    `step_0000000120.9f86d081-4.rank_1`. The file without a rank is there once all others are.

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
                self._remember(step, Checkpoint.read_score(self._file(step)).score)

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
            InvalidInputError: The file of another rank is missing, or is of another checkpoint.
        """
        return Checkpoint.read(self._file(step))

    def latest(self) -> Checkpoint | None:
        """Reads the newest checkpoint that is not damaged.

        Returns:
            A `Checkpoint`, or `None` if the folder has none.

        Raises:
            CheckpointError: There are checkpoints, and all of them are damaged.
            InvalidInputError: A file of a rank is missing, or is of another checkpoint.
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

    def best(self) -> Checkpoint:
        """Reads the checkpoint with the best score, the earlier one of equal scores.

        The newest one with a score says if a lower or a higher one is better; `keep_best` of this
        object does not matter.

        Returns:
            A `Checkpoint`.

        Raises:
            CheckpointError: Its arrays are damaged. A file without a readable score is passed over.
            InvalidInputError: No checkpoint of the folder has a score.
        """
        scored = []
        for step in self.steps():
            try:
                checkpoint = Checkpoint.read_score(self._file(step))
            except CheckpointError as error:
                _logger.warning("%s It can't be the best.", error)
                continue
            if checkpoint.score is not None and math.isfinite(checkpoint.score):
                scored.append(checkpoint)
        if not scored:
            raise InvalidInputError(
                f"No checkpoint in {str(self.path)!r} was kept as the best: train with "
                "Trainer(..., keep_best=('val_loss', 'min')), or use the newest one."
            )
        sign = -1 if (scored[-1].best_is or self.best_is) == "max" else 1
        return self.read(
            min(scored, key=lambda entry: (sign * (entry.score or 0), entry.step)).step
        )

    def is_among_best(self, score: float) -> bool:
        """Returns whether a checkpoint with this score would be kept as one of the best."""
        best = self._best()
        if len(best) < self.keep_best:
            return math.isfinite(score)
        return any(self._loss(score) < self._loss(self._scores[step]) for step in best)

    def write(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint, and then removes those that are no longer kept.

        Of processes that write one together, the last one makes it valid.

        Args:
            checkpoint: `Checkpoint`.

        Raises:
            CheckpointError: The checkpoint can't be written. Nothing was removed.
        """
        self._make()
        self._remember(checkpoint.step, checkpoint.score)
        if checkpoint.score is not None and self.keep_best:
            checkpoint = dataclasses.replace(checkpoint, best_is=self.best_is)
        target = self._file(checkpoint.step)
        if checkpoint.num_ranks == 1:
            checkpoint.write(target)
        else:
            parts = [
                self.path / part_name(checkpoint.step, checkpoint.save_id, rank)
                for rank in range(checkpoint.num_ranks)
            ]
            checkpoint.write(parts[checkpoint.rank])
            if not all(part.exists() for part in parts):
                return
            with contextlib.suppress(FileNotFoundError):  # Another process was faster.
                parts[0].replace(target)
            flush_to_disk(self.path)
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
        """Removes what there is of later steps, which a training that resumes here writes again.

        Args:
            step: integer.
        """
        self._remove(lambda later: later > step)
        self._scores = {scored: self._scores[scored] for scored in self._scores if scored <= step}

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"No folder for checkpoints can be made at {str(self.path)!r}: {error}."
            ) from error

    def _prune(self) -> None:
        steps = self.steps()
        steps_to_keep = {*steps[-self.keep_last :], *self._best()}
        # What is not complete may still be written if it is later than all that is.
        self._remove(lambda step: step < steps[-1] and step not in steps_to_keep)

    def _best(self) -> list[int]:
        """Returns the training steps with the best scores, the earlier first of equal ones."""
        scored = [step for step in self.steps() if step in self._scores]
        ranked = sorted(scored, key=lambda step: (self._loss(self._scores[step]), step))
        return ranked[: self.keep_best]

    def _loss(self, score: float) -> float:
        return score if self.best_is == "min" else -score

    def _remember(self, step: int, score: float | None) -> None:
        if score is not None and math.isfinite(score):
            self._scores[step] = score

    def _remove(self, is_chosen: Callable[[int], bool]) -> None:
        """Removes all files of the steps for which a function returns True."""
        paths = self.path.iterdir() if self.path.is_dir() else ()
        matches = [match for path in paths if (match := _ANY_NAME.match(path.name))]
        # Without this file, a checkpoint is not there.
        for match in sorted(matches, key=lambda match: not match[0].endswith(_ENDING)):
            if is_chosen(int(match[1])):
                (self.path / match[0]).unlink(missing_ok=True)

    def _file(self, step: int) -> Path:
        return self.path / f"step_{step:010d}.checkpoint"
