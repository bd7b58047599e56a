"""A simulated model behind the real queue: events in the order of their time, and no clock.

The tests of the policies and `benchmarks/serving_rules.py` run it.
"""

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from statistics import fmean, pstdev

import numpy as np

from keras_deepseek.inference.batching.batch import Batch, Request
from keras_deepseek.inference.batching.batch_queue import BatchQueue
from keras_deepseek.inference.batching.batch_time import BatchTime
from keras_deepseek.inference.batching.batcher import batch_buckets
from keras_deepseek.inference.batching.batching_policy import (
    AdaptivePolicy,
    BatchingPolicy,
    FixedPolicy,
)
from keras_deepseek.inference.errors import OverloadedError

LIMIT = 32
ROW = {"x": np.zeros((1, 1), "float32")}


def seconds_of(rows: int) -> float:
    """Returns what the simulated accelerator takes for a batch."""
    return 0.004 + 0.00025 * rows


@dataclass
class Outcome:
    """What requests met with.

    Args:
        latencies: list of floats. Seconds from coming to answer.
        batches: list of `Batch`.
        refused: integer. Requests that were not accepted.
        seconds: float. How long it went on.
    """

    latencies: list[float] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    refused: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Requests answered a second."""
        return len(self.latencies) / self.seconds

    @property
    def mean_rows(self) -> float:
        """Rows of a batch."""
        return fmean(batch.rows for batch in self.batches)

    @property
    def mean(self) -> float:
        """The mean latency in seconds."""
        return fmean(self.latencies)

    @property
    def deviation(self) -> float:
        """The standard deviation of the latency in seconds."""
        return pstdev(self.latencies)

    def quantile(self, part: float) -> float:
        """Returns the latency in seconds that a part of the requests stayed below."""
        return sorted(self.latencies)[int(part * (len(self.latencies) - 1))]


def make_queue(wait: float | None = None, **options) -> BatchQueue:
    """Returns a queue of the learning policy, or of the policy of one fixed wait in seconds."""
    time, buckets = BatchTime(), batch_buckets("dynamic", LIMIT)
    for rows in buckets:
        time.add(rows, seconds_of(rows))

    def make_policy() -> BatchingPolicy:
        return AdaptivePolicy(buckets, time) if wait is None else FixedPolicy(LIMIT, wait)

    return BatchQueue(make_policy, buckets=buckets, batch_time=time, **options)


def simulate(
    queue: BatchQueue,
    arrivals: Iterable[float] = (),
    *,
    num_clients: int = 0,
    think: Callable[[int], float] = lambda _: 0.001,
    seconds: float = 10.0,
    timeout: float = math.inf,
) -> Outcome:
    """Returns what requests meet with that come at given times, or from clients that wait for it.

    Args:
        queue: `BatchQueue`.
        arrivals: iterable of floats. Times in seconds.
        num_clients: integer. Clients that send a request when the last one was answered.
        think: Function from the place that a request had in its batch to the seconds until its
            client sends the next.
        seconds: float. How long it goes on.
        timeout: float. Seconds from coming to the deadline of each request.
    """
    outcome = Outcome(seconds=seconds)
    events: list[tuple[float, int, str, Batch | None]] = []
    order = itertools.count()

    def push(time: float, kind: str, batch: Batch | None = None) -> None:
        heapq.heappush(events, (time, next(order), kind, batch))

    for time in arrivals:
        push(time, "request")
    for client in range(num_clients):
        push(think(client), "request")
    is_busy = False
    while events:
        now, _, kind, batch = heapq.heappop(events)
        if now > seconds:
            break
        if kind == "request":
            try:
                queue.add(Request(ROW, deadline=now + timeout), now)
            except OverloadedError:
                outcome.refused += 1
        elif kind == "answer":
            is_busy = False
            queue.free(now)
            for part_index, part in enumerate(batch.slices):
                outcome.latencies.append(now - part.request.arrived)
                if num_clients:
                    push(now + think(part_index), "request")
        if is_busy:
            continue
        batch = queue.next_batch(now)
        if batch is not None:
            is_busy = True
            outcome.batches.append(batch)
            push(now + seconds_of(queue.bucket(batch.rows)), "answer", batch)
        elif queue.next_time() < math.inf:
            push(max(queue.next_time(), now), "look")
    return outcome


def poisson(rate: float, seconds: float, seed: int = 1) -> Iterator[float]:
    """Yields the times of requests that know nothing of each other."""
    generator, time = random.Random(seed), 0.0
    while time < seconds:
        time += generator.expovariate(rate)
        yield time


def bursts(rate: float, rows: int, spread: float, seconds: float, seed: int = 1) -> Iterator[float]:
    """Yields the times of requests in bursts of 1 to `2 rows - 1`, each within `spread` seconds."""
    generator, time = random.Random(seed), 0.0
    while time < seconds:
        time += generator.expovariate(rate / rows)
        for _ in range(generator.randint(1, 2 * rows - 1)):
            yield time + generator.uniform(0.0, spread)


def returning(seed: int = 1) -> Callable[[int], float]:
    """Returns how long clients take that are answered one after the other, and send at once."""
    generator = random.Random(seed)
    return lambda client: 0.0006 + 0.00003 * client + generator.expovariate(1 / 0.0002)
