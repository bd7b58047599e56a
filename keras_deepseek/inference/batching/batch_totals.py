"""The totals of a batcher's batches: a few numbers for each batch, whatever its number of requests.

`batcher` adds each batch under its lock. `metrics` and `ServingEngine.statistics` read the totals.
"""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

from keras_deepseek.inference.batching.batch import BatchDecision, Reason
from keras_deepseek.inference.histogram import ROWS, SECONDS, Histogram, HistogramValues

NUM_DECISIONS = 256
"""The number of last batches whose records are kept."""


@dataclass(frozen=True)
class BatchStatistics:
    """The totals of all batches of a batcher at one moment.

    Args:
        rows: Rows of requests in the batches, without padding.
        busy_seconds: Time in the model, summed over the replicas.
        waiting_rows: Rows in the queue now.
        overhead: The fitted seconds of a batch without the part of its rows.
        per_row: The fitted seconds that a row adds to a batch.
        decisions: The last ones, oldest first.
        queue_age: Seconds that the oldest request in the queue has waited, or 0.
        replicas: The number of threads that run the model.
        reasons: The number of batches that left for each reason.
        batch_rows: The rows of requests in a batch.
        queue_ages: The `queue_age` of batches.
        batch_seconds: The time in the model for a batch.
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
    """Counts and sums up the batches that a batcher has run. The caller holds a lock."""

    def __init__(self) -> None:
        self._batches = self._rows = self._padded_rows = 0
        self._busy_seconds = 0.0
        self._decisions: deque[BatchDecision] = deque(maxlen=NUM_DECISIONS)
        self._reasons: Counter[Reason] = Counter()
        self._batch_rows = Histogram(ROWS)
        self._queue_ages = Histogram(SECONDS)
        self._batch_seconds = Histogram(SECONDS)

    def add(self, decision: BatchDecision) -> None:
        """Adds a batch that has run to the totals."""
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
        self, *, waiting_rows: int, queue_age: float, overhead: float, per_row: float, replicas: int
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
