"""What a batcher's batches add up to: a few integers a batch, whatever the number of requests.

`batcher` adds each batch under its lock; `metrics` and `ServingEngine.statistics` read it.
"""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

from keras_deepseek.inference.batching.batch import Reason
from keras_deepseek.inference.histogram import ROWS, SECONDS, Histogram, HistogramValues

NUM_DECISIONS = 256
"""How many of the last decisions are kept."""


@dataclass(frozen=True)
class BatchDecision:
    """What left, and why.

    Args:
        reason: string. `"full"`, `"idle"`, `"gathered"`, `"waited"`, `"deadline"`, `"closing"` or
            `"retried"`.
        rows: integer. Rows of requests.
        padded_rows: integer. Rows that were added to fill a bucket.
        queue_age: float. Seconds that the oldest request had waited.
        seconds: float. How long the model took.
        left: float. When it left, in seconds of the batcher's clock. Defaults to `0.0`.
    """

    reason: Reason
    rows: int
    padded_rows: int
    queue_age: float
    seconds: float
    left: float = 0.0


@dataclass(frozen=True)
class BatchStatistics:
    """What a batcher has done so far.

    Args:
        batches: integer. Calls of the model.
        rows: integer. Rows of requests that they held.
        padded_rows: integer. Rows that were added to fill buckets.
        busy_seconds: float. Time inside the model, summed over the replicas.
        waiting_rows: integer. Rows in the queue now.
        overhead: float. Seconds that a batch takes beside what each row adds, as fitted.
        per_row: float. Seconds that a row adds to a batch, as fitted.
        decisions: tuple of `BatchDecision`: the last ones, oldest first.
        queue_age: float. Seconds that the oldest request in the queue has waited; 0 where there is
            none.
        replicas: integer. Threads that run the model.
        reasons: mapping from reason to the number of batches that left for it.
        batch_rows: `HistogramValues`. Of each batch's rows of requests.
        queue_ages: `HistogramValues`. Of each batch's `queue_age`.
        batch_seconds: `HistogramValues`. Of each batch's time inside the model.
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
    """Adds batches up. Whoever has it holds a lock."""

    def __init__(self) -> None:
        self._batches = self._rows = self._padded_rows = 0
        self._busy_seconds = 0.0
        self._decisions: deque[BatchDecision] = deque(maxlen=NUM_DECISIONS)
        self._reasons: Counter[Reason] = Counter()
        self._batch_rows = Histogram(ROWS)
        self._queue_ages = Histogram(SECONDS)
        self._batch_seconds = Histogram(SECONDS)

    def add(self, decision: BatchDecision) -> None:
        """Takes a batch that was run."""
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
        """Returns what was added so far, with what the queue is like now.

        Args:
            waiting_rows: integer. As in `BatchStatistics`.
            queue_age: float. As in `BatchStatistics`.
            overhead: float. As in `BatchStatistics`.
            per_row: float. As in `BatchStatistics`.
            replicas: integer. As in `BatchStatistics`.
        """
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
