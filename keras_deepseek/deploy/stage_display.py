"""The progress display of an export's stages."""

import time
from typing import Any, Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from keras_deepseek.errors import InvalidInputError

CHILD_MARK = "keras_deepseek export stage: "
"""The start of a line in which a child process names its stage."""


def check_verbose(verbose: Any) -> int | str:
    """Checks and returns the argument `verbose`."""
    if verbose not in ("auto", 0, 1, 2):
        raise InvalidInputError(f'`verbose` must be "auto", 0, 1 or 2; received {verbose!r}.')
    checked: int | str = verbose
    return checked


class StageDisplay:
    """A progress display, called with the name of each export stage as it begins.

    On a terminal the current stage is shown with its time, and each finished one leaves a line.
    Elsewhere, and with `verbose=2`, each stage is a line as it begins. `verbose=0` shows nothing.
    """

    def __init__(self, verbose: int | str, console: Console | None = None) -> None:
        self._is_shown = verbose != 0
        self._console = console or Console(highlight=False)
        self._stage: str | None = None
        self._began = 0.0
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._is_live = verbose in ("auto", 1) and self._console.is_terminal

    def __enter__(self) -> Self:
        if self._is_live:
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._is_live:
            self._end_stage()
            self._progress.stop()

    def __call__(self, stage: str) -> None:
        if not self._is_shown:
            return
        if not self._is_live:
            print(stage, flush=True)
            return
        self._end_stage()
        self._stage, self._began = stage, time.monotonic()
        self._progress.add_task(stage, total=None)

    def _end_stage(self) -> None:
        if self._stage is not None:
            seconds = time.monotonic() - self._began
            self._console.print(f"{self._stage} ({seconds:.1f} s)", markup=False, highlight=False)
        for task in self._progress.task_ids:
            self._progress.remove_task(task)
        self._stage = None
