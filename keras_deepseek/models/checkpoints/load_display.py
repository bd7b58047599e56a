"""A progress bar for loading and saving weights."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_SHORT = 1.0  # Seconds. A shorter operation gets no bar.


class LoadDisplay:
    """A progress bar; call it with the number of bytes that were just processed.

    It appears after a second, only on a terminal, and disappears at the end. `total` is in bytes,
    and the clock in seconds. A console of `None` is the standard error.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        is_shown: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(stderr=True)
        self._is_shown = is_shown and self._console.is_terminal
        self._clock = clock
        self._began = clock()
        self._is_live = False
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._progress.add_task(title, total=total)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_live:
            self._progress.stop()

    def __call__(self, num_bytes: int) -> None:
        self._progress.advance(self._task, num_bytes)
        if self._is_shown and not self._is_live and self._clock() - self._began > _SHORT:
            self._is_live = True
            self._progress.start()
