"""The progress display of an export's stages."""

import time
from typing import Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

CHILD_MARK = "keras_deepseek export stage: "
"""The start of a line in which a child process names its stage."""


class StageDisplay:
    """A progress display, called with the name of each export stage as it begins.

    On a terminal the current stage is shown with its time, and each finished one leaves a line.
    Elsewhere, each stage is a line as it begins.
    """

    def __init__(self, *, is_shown: bool, console: Console | None = None) -> None:
        self._is_shown = is_shown
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
        self._is_live = is_shown and self._console.is_terminal

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
