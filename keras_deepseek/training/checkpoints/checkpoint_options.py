"""The arguments of `Trainer` for checkpoints: where, when, and how many."""

import os
from dataclasses import dataclass, fields
from typing import Literal

from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError

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
