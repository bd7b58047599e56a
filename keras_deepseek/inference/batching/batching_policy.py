"""The policies that say how long rows wait for more: the interface, a fixed and an adaptive one.

`shape_queue` holds the rows and asks its policy.
"""

from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple

from keras_deepseek.inference.batching.batch_time import BatchTime

Occasion = Literal["idle", "freed"]
"""Why the model is free while rows wait: it was idle when the first of them came, or it finished a
batch.
"""

NUM_MOMENTS = 16
"""The number of last moments of each kind that are kept."""

MOMENTS_BETWEEN_LESSONS = 4
"""The number of moments after which the wait is computed again."""

PARTS_OF_OVERHEAD = (1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1, 3 / 2)
"""The waits that are compared, relative to the overhead of a batch. A wait longer than the overhead
can pay if a batch of the late rows alone would be padded.
"""

SHORTEST_WAIT = 5e-5
"""Seconds. A thread can't be woken reliably in a shorter time."""

LEAST_GAIN = 0.05
"""The least saving, relative to the time in the model: less may be chance."""

MOST = 0.7
"""The fraction of moments, and of the rows in one, that counts as "most"."""


class Plan(NamedTuple):
    """The time when waiting rows leave, and the row count at which they leave earlier."""

    time: float
    rows: int


class BatchingPolicy(ABC):
    """A policy that says how long the rows of one queue wait while the model is free.

    A policy that learns overrides `begin`, `arrive` and `end`, which do nothing here.
    """

    def begin(self, occasion: Occasion, rows: int, now: float) -> None:  # noqa: B027
        """Notes that the model is free and rows wait."""

    def arrive(self, rows: int, now: float) -> None:  # noqa: B027
        """Notes that more rows have arrived."""

    def end(self, now: float) -> None:  # noqa: B027
        """Notes that the model is free and no rows wait."""

    @abstractmethod
    def plan(self, oldest: float) -> Plan:
        """Returns the time, and the number of rows, at which waiting rows leave.

        `oldest` is the time when the oldest of them came.
        """


class FixedPolicy(BatchingPolicy):
    """A policy that sends a batch at a fixed row count, or a fixed time after its oldest row."""

    def __init__(self, rows: int, wait: float) -> None:
        self._rows = rows
        self._wait = wait

    def plan(self, oldest: float) -> Plan:
        """Returns the fixed time and row count at which a batch leaves."""
        return Plan(oldest + self._wait, self._rows)


class _Moment(NamedTuple):
    """A period in which the model was free: rows that waited, later arrivals, and its length."""

    rows: int
    offsets: tuple[float, ...]
    seconds: float


class _Wait(NamedTuple):
    seconds: float
    rows: int


class AdaptivePolicy(BatchingPolicy):
    """Waits for rows that are likely to come, as long as that makes answers come sooner.

    A batch of `n` rows takes `t(n)` seconds, as many as its padded size. Let `q` rows wait at a
    free model, and let `m` more come within `d` seconds. Without waiting, the `q` rows finish after
    `t(q)`, and the `m` rows after their own batch. With waiting, all finish after `d + t(q + m)`.
    Summed over the rows, waiting saves

        q t(q) + m (t(q) + t(m)) - (q + m) (d + t(q + m)).

    For clients that send their next request when the last one is answered, waiting saves more:
    without it, a batch of `q` rows and a batch of `m` rows follow each other for ever. A round of
    all `q + m` rows takes `t(q) + t(m)` seconds without waiting. With waiting it takes
    `d + t(q + m)`, if they fit in one batch. Such clients are recognized because their rows come
    right after a batch, and not during one.

    The policy distinguishes two kinds of moments: the model is idle and a first row comes, or the
    model finishes a batch and finds rows. For each kind, the last moments tell which rows came
    after, whether the policy waited or not. So the policy also learns while it does not wait, and
    stops waiting when nothing comes.
    """

    def __init__(self, buckets: tuple[int, ...], batch_time: BatchTime) -> None:
        self._buckets = buckets
        self._limit = buckets[-1]
        self._time = batch_time
        self._moments: dict[Occasion, deque[_Moment]] = {
            "idle": deque(maxlen=NUM_MOMENTS),
            "freed": deque(maxlen=NUM_MOMENTS),
        }
        self._waits: dict[Occasion, _Wait | None] = {"idle": None, "freed": None}
        self._lessons_due: dict[Occasion, int] = {"idle": 0, "freed": 0}
        self._occasion: Occasion | None = None
        self._began = 0.0
        self._rows = 0
        self._offsets: list[float] = []

    def begin(self, occasion: Occasion, rows: int, now: float) -> None:
        """Starts a period in which the model is free and rows wait."""
        self.end(now)
        self._occasion, self._began, self._rows, self._offsets = occasion, now, rows, []

    def arrive(self, rows: int, now: float) -> None:
        """Records rows that arrived while the model was free, or since it took the last rows."""
        if self._occasion is not None:
            room = self._limit - len(self._offsets)
            self._offsets.extend([now - self._began] * min(rows, room))

    def end(self, now: float) -> None:
        """Ends the period in which the model was free, and learns from it."""
        occasion, self._occasion = self._occasion, None
        if occasion is None:
            return
        moment = _Moment(self._rows, tuple(self._offsets), now - self._began)
        self._moments[occasion].append(moment)
        self._lessons_due[occasion] += 1
        if self._lessons_due[occasion] == MOMENTS_BETWEEN_LESSONS:
            self._lessons_due[occasion] = 0
            self._waits[occasion] = self._learn(self._moments[occasion])

    def plan(self, oldest: float) -> Plan:
        """Returns the time and the row count at which a batch leaves, whichever comes first."""
        wait = None if self._occasion is None else self._waits[self._occasion]
        if wait is None:
            return Plan(oldest, 0)
        return Plan(self._began + wait.seconds, self._rows + wait.rows)

    def _learn(self, moments: deque[_Moment]) -> _Wait | None:
        """Returns the wait that would have saved most time, or `None` if the gain is small."""
        times = [self._time.predict(size) for size in self._buckets]

        def batch_seconds(rows: int) -> float:
            return times[min(bisect_left(self._buckets, rows), len(times) - 1)]

        in_model = sum(moment.rows * batch_seconds(moment.rows) for moment in moments)
        best, best_gain, has_margin = None, LEAST_GAIN * in_model, False
        for part in PARTS_OF_OVERHEAD:
            seconds = part * self._time.overhead
            if seconds < SHORTEST_WAIT:
                continue
            counts = [bisect_right(moment.offsets, seconds) for moment in moments]
            wait = _Wait(seconds, max(counts))
            if wait.rows == 0:
                continue
            gain = self._gain(moments, counts, wait, batch_seconds)
            if gain > best_gain:
                best, best_gain, has_margin = wait, gain, False
            elif best is not None and gain == best_gain and not has_margin:
                best, has_margin = wait, True  # It costs nothing, and is for rows that come later.
        return best

    def _gain(
        self,
        moments: deque[_Moment],
        counts: list[int],
        wait: _Wait,
        batch_seconds: Callable[[int], float],
    ) -> float:
        """Returns the seconds that a wait would have saved, summed over the rows."""
        returning = _are_returning(moments, counts, wait.seconds)
        gain = 0.0
        for moment, count in zip(moments, counts, strict=True):
            more = min(wait.rows, max(self._limit - moment.rows, 0))
            if not more:
                continue  # A full batch waits for nothing.
            is_enough = more <= count
            came = more if is_enough else count
            waited = moment.offsets[more - 1] if is_enough else wait.seconds
            rows = moment.rows + came
            at_once, together = batch_seconds(moment.rows), waited + batch_seconds(rows)
            if not came:
                gain -= rows * waited
            elif returning:
                in_round = moment.rows + count
                gain += rows * (at_once + batch_seconds(count)) - in_round * together
            else:
                gain += rows * (at_once - together) + came * batch_seconds(came)
        return gain


def _are_returning(moments: deque[_Moment], counts: list[int], seconds: float) -> bool:
    """Returns true if rows usually arrive early in a period, as from clients that wait."""
    at_once = sum(
        bool(moment.offsets)
        and count >= MOST * len(moment.offsets)
        and seconds < moment.seconds / 2
        for moment, count in zip(moments, counts, strict=True)
    )
    return at_once >= MOST * len(moments)
