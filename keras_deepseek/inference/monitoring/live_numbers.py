"""How an engine does at the moment: what its counters have grown by since they were last read.

`live_line` shows it. Nothing here waits, and the clock is passed in.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from keras_deepseek.inference.histogram import SECONDS, Histogram, HistogramValues
from keras_deepseek.inference.monitoring.engine_monitor import Called
from keras_deepseek.inference.monitoring.monitored_engine import MonitoredEngine


@dataclass(frozen=True)
class Moment:
    """An engine between two readings, all its models together.

    Args:
        requests_per_second: float. Requests that a server answered, whatever the status.
        batch_rows: float. Rows of a batch, in the mean; `None` where none ran.
        median: float. Seconds that a request took; `None` where there was none.
        late: float. Seconds that 99 of 100 requests took no more than; likewise.
        busy: float from 0 to 1. The share of time inside the model, of all replicas.
        waiting_rows: integer. What waits now.
    """

    requests_per_second: float
    batch_rows: float | None
    median: float | None
    late: float | None
    busy: float
    waiting_rows: int


@dataclass(frozen=True)
class _Sums:
    time: float
    latencies: Mapping[Called, HistogramValues]
    batches: int
    rows: int
    busy_seconds: float


class LiveNumbers:
    """Reads an engine's counters.

    Args:
        engine: `ServingEngine`.
        clock: Function that returns the time in seconds. Defaults to `time.monotonic`.
    """

    def __init__(
        self, engine: MonitoredEngine, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._last, _, _ = self._read()

    def next(self) -> Moment:
        """Returns what happened since the last call, or since this was made."""
        before = self._last
        now, replicas, waiting = self._read()
        self._last = now
        seconds = max(now.time - before.time, 1e-9)
        # A version that was unloaded takes its counters with it.
        batches = max(now.batches - before.batches, 0)
        rows = max(now.rows - before.rows, 0)
        latencies = Histogram(SECONDS).values()
        for called, values in now.latencies.items():
            latencies = latencies.plus(values.since(before.latencies.get(called)))
        busy = max(now.busy_seconds - before.busy_seconds, 0.0) / seconds / max(replicas, 1)
        return Moment(
            requests_per_second=latencies.count / seconds,
            batch_rows=rows / batches if batches else None,
            median=latencies.quantile(0.5),
            late=latencies.quantile(0.99),
            busy=min(busy, 1.0),
            waiting_rows=waiting,
        )

    def _read(self) -> tuple[_Sums, int, int]:
        """Returns the sums of all models, their replicas, and the rows that wait."""
        latencies = {
            called: values
            for called, values in self._engine.monitor.latencies().items()
            if called[1]  # Else no model was asked: it was for health, or for numbers.
        }
        found = [
            version.statistics()
            for served in self._engine.models.values()
            for version in served.versions.values()
        ]
        sums = _Sums(
            self._clock(),
            latencies,
            sum(each.batches for each in found),
            sum(each.rows for each in found),
            sum(each.busy_seconds for each in found),
        )
        replicas = sum(each.replicas for each in found)
        return sums, replicas, sum(each.waiting_rows for each in found)
