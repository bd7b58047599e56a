"""The totals of a batcher's batches: a few numbers for each batch, whatever its number of requests.

`batcher` adds each batch under its lock. `metrics` and `ServingEngine.statistics` read the totals.
"""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

from keras_deepseek.inference.batching.batch import Reason
from keras_deepseek.inference.histogram import ROWS, SECONDS, Histogram, HistogramValues

NUM_DECISIONS = 256
"""The number of last batches whose records are kept."""


@dataclass(frozen=True)
class BatchDecision:
    """The record of one batch.

    Args:
        reason: string. Why it left the queue: `"full"`, `"idle"`, `"gathered"`, `"waited"`,
            `"deadline"`, `"closing"` or `"retried"`.
        rows: integer. Rows of requests.
        padded_rows: integer. Rows that were added as padding.
        queue_age: float. Seconds that the oldest request had waited.
        seconds: float. Seconds in the model.
        left: float. When it left, in seconds of the batcher's clock.
    """

    reason: Reason
    rows: int
    padded_rows: int
    queue_age: float
    seconds: float
    left: float = 0.0


@dataclass(frozen=True)
class BatchStatistics:
    """The totals of a batcher at one moment.

    Args:
        batches: integer. Calls of the model.
        rows: integer. Rows of requests in these batches.
        padded_rows: integer. Rows that were added as padding.
        busy_seconds: float. Time in the model, summed over the replicas.
        waiting_rows: integer. Rows in the queue now.
        overhead: float. The fitted seconds of a batch without the part of its rows.
        per_row: float. The fitted seconds that a row adds to a batch.
        decisions: tuple of `BatchDecision`: the last ones, oldest first.
        queue_age: float. Seconds that the oldest request in the queue has waited, or 0.
        replicas: integer. The number of threads that run the model.
        reasons: mapping from reason to the number of batches that left for it.
        batch_rows: `HistogramValues` of the rows of requests in a batch.
        queue_ages: `HistogramValues` of the `queue_age` of a batch.
        batch_seconds: `HistogramValues` of the time in the model for a batch.
    """

    batches: int
    rows: int
    padded_rows: int
    busy_seconds: float
    waiting_rows: int
    overhead: float
    per_row: float
    decisions: tuple[BatchDecision, ...]
    queue_age: float
    replicas: int
    reasons: Mapping[Reason, int]
    batch_rows: HistogramValues
    queue_ages: HistogramValues
    batch_seconds: HistogramValues


class BatchTotals:
    """Adds batches up. The caller holds a lock."""

    def __init__(self) -> None:
        self._batches = self._rows = self._padded_rows = 0
        self._busy_seconds = 0.0
        self._decisions: deque[BatchDecision] = deque(maxlen=NUM_DECISIONS)
        self._reasons: Counter[Reason] = Counter()
        self._batch_rows = Histogram(ROWS)
        self._queue_ages = Histogram(SECONDS)
        self._batch_seconds = Histogram(SECONDS)

    def add(self, decision: BatchDecision) -> None:
        """Adds a batch that has run."""
        self._batches += 1
        self._rows += decision.rows
        self._padded_rows += decision.padded_rows
        self._busy_seconds += decision.seconds
        self._decisions.append(decision)
        self._reasons[decision.reason] += 1
        self._batch_rows.add(decision.rows)
        self._queue_ages.add(decision.queue_age)
        self._batch_seconds.add(decision.seconds)

    def statistics(
        self,
        *,
        waiting_rows: int,
        queue_age: float,
        overhead: float,
        per_row: float,
        replicas: int,
    ) -> BatchStatistics:
        """Returns the totals. The arguments are the present values of the queue."""
        return BatchStatistics(
            batches=self._batches,
            rows=self._rows,
            padded_rows=self._padded_rows,
            busy_seconds=self._busy_seconds,
            waiting_rows=waiting_rows,
            overhead=overhead,
            per_row=per_row,
            decisions=tuple(self._decisions),
            queue_age=queue_age,
            replicas=replicas,
            reasons=dict(self._reasons),
            batch_rows=self._batch_rows.values(),
            queue_ages=self._queue_ages.values(),
            batch_seconds=self._batch_seconds.values(),
        )
