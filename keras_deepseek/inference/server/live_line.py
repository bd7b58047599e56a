"""The status line that `keras-deepseek serve` keeps up to date on a terminal."""

import threading
from typing import TYPE_CHECKING

from keras_deepseek.inference.server.engine import Engine
from keras_deepseek.inference.server.live_statistics import LiveStatistics, LiveStatisticsReader

if TYPE_CHECKING:
    from rich.console import Console


class LiveLine:
    """Context manager that shows an engine's statistics, if the output is a terminal.

    `seconds` is the time between two updates.
    """

    def __init__(
        self, engine: Engine, console: "Console | None" = None, seconds: float = 1.0
    ) -> None:
        from rich.console import Console

        self._engine = engine
        self._console = console or Console(highlight=False)
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "LiveLine":
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._thread = threading.Thread(target=self._show, name="live-line", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _show(self) -> None:
        from rich.live import Live

        reader = LiveStatisticsReader(self._engine)
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while not self._stop.wait(self._seconds):
                live.update(format_statistics(reader.read()), refresh=True)


def format_statistics(statistics: LiveStatistics) -> str:
    """Formats an engine's statistics as one status line."""
    rows = statistics.batch_rows
    batch = "–" if rows is None else f"{rows:.1f}"  # noqa: RUF001
    return (
        f"{statistics.requests_per_second:,.0f} requests/s · batch {batch} · "
        f"p50 {_milliseconds(statistics.p50)} · p99 {_milliseconds(statistics.p99)} · "
        f"{statistics.busy:.0%} busy · {statistics.waiting_rows:,} waiting".replace("%", " %")
    )


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:.1f} ms"  # noqa: RUF001
