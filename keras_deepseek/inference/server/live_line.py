"""The status line of `keras-deepseek serve` on a terminal: statistics over a short interval."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from keras_deepseek.inference.dispatcher import Dispatcher
from keras_deepseek.inference.histogram import SECONDS, Histogram, HistogramValues
from keras_deepseek.inference.monitoring.engine_monitor import Called

if TYPE_CHECKING:
    from rich.console import Console


class LiveStatistics(NamedTuple):
    """The statistics of all models of an engine between two readings.

    Args:
        requests_per_second: Requests that a server answered, with any status.
        batch_rows: The mean number of rows of a batch; `None` if none ran.
        p50: The median of the seconds that a request took; `None` if there was none.
        p99: The 99th percentile of these seconds; `None` if there was none.
        busy: From 0 to 1: the part of the time that the replicas spent in the model.
        waiting_rows: Rows that wait now, and answers of language models.
        tokens_per_second: Tokens of answers of language models.
        running_answers: Answers that language models write now.
    """

    requests_per_second: float
    batch_rows: float | None
    p50: float | None
    p99: float | None
    busy: float
    waiting_rows: int
    tokens_per_second: float = 0.0
    running_answers: int = 0


class _Sums(NamedTuple):
    time: float
    latencies: Mapping[Called, HistogramValues]
    batches: int
    rows: int
    busy_seconds: float
    tokens: int


class _Now(NamedTuple):
    replicas: int
    waiting_rows: int
    running_answers: int


class LiveStatisticsReader:
    """Computes an engine's statistics from the growth of its counters between two calls."""

    def __init__(self, engine: Dispatcher, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._last, _ = self._read()

    def read(self) -> LiveStatistics:
        """Returns the statistics since the last call, or since this object was made."""
        previous = self._last
        now, present = self._read()
        self._last = now
        seconds = max(now.time - previous.time, 1e-9)
        # The counters of a version disappear when it is unloaded.
        batches = max(now.batches - previous.batches, 0)
        rows = max(now.rows - previous.rows, 0)
        latencies = Histogram(SECONDS).values()
        for called, values in now.latencies.items():
            latencies = latencies.plus(values.since(previous.latencies.get(called)))
        busy_seconds = max(now.busy_seconds - previous.busy_seconds, 0.0)
        return LiveStatistics(
            requests_per_second=latencies.count / seconds,
            batch_rows=rows / batches if batches else None,
            p50=latencies.quantile(0.5),
            p99=latencies.quantile(0.99),
            busy=min(busy_seconds / seconds / max(present.replicas, 1), 1.0),
            waiting_rows=present.waiting_rows,
            tokens_per_second=max(now.tokens - previous.tokens, 0) / seconds,
            running_answers=present.running_answers,
        )

    def _read(self) -> tuple[_Sums, _Now]:
        """Returns the summed counters of all models, and the present state of their queues."""
        latencies = {
            called: values
            for called, values in self._engine.monitor.latencies().items()
            if called[1]  # Calls without a version, such as health checks, ask no model.
        }
        statistics = [version.statistics() for version in self._engine.tensor_versions()]
        texts = [version.engine.statistics() for version in self._engine.text_versions()]
        sums = _Sums(
            self._clock(),
            latencies,
            sum(version.batches for version in statistics),
            sum(version.rows for version in statistics),
            sum(version.busy_seconds for version in statistics),
            sum(version.num_tokens for version in texts),
        )
        present = _Now(
            sum(version.replicas for version in statistics),
            sum(version.waiting_rows for version in statistics)
            + sum(version.num_waiting for version in texts),
            sum(version.num_running for version in texts),
        )
        return sums, present


class LiveLine:
    """Context manager that shows an engine's statistics, if the output is a terminal.

    `seconds` is the time between two updates.
    """

    def __init__(
        self, engine: Dispatcher, console: "Console | None" = None, seconds: float = 1.0
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
                loading = [version.progress for version in self._engine.text_versions()]
                parts = (format_statistics(reader.read()), *loading)
                live.update(" · ".join(filter(None, parts)), refresh=True)


def format_statistics(statistics: LiveStatistics) -> str:
    """Formats an engine's statistics as one status line."""
    rows = statistics.batch_rows
    batch = "–" if rows is None else f"{rows:.1f}"  # noqa: RUF001
    text = ""
    if statistics.running_answers or statistics.tokens_per_second:
        text = f"{statistics.running_answers} answers, {statistics.tokens_per_second:,.0f} tokens/s"
    return (
        f"{statistics.requests_per_second:,.0f} requests/s · batch {batch} · "
        f"p50 {_milliseconds(statistics.p50)} · p99 {_milliseconds(statistics.p99)} · "
        f"{statistics.busy:.0%} busy · {statistics.waiting_rows:,} waiting".replace("%", " %")
        + (text and f" · {text}")
    )


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:.1f} ms"  # noqa: RUF001
