"""A simulation of replicas under an HorizontalPodAutoscaler, and days of traffic for it.

It goes in steps of one second and follows the documented algorithm: each 15 seconds the wanted
replicas are the metric's sum over the target, rounded up; a difference of less than a tenth changes
nothing; then the stabilization windows and the policies of `behavior` hold. New pods answer after
their cold start.

Reference: https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/
"""

import csv
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.operator.kinds import Object
from keras_deepseek.operator.scaling import BEHAVIOR

_SYNC_SECONDS = 15  # The time between two decisions of Kubernetes's autoscaler.
_TOLERANCE = 0.1  # A smaller relative distance from the target changes no replicas.


@dataclass(frozen=True)
class SimulatedDeployment:
    """A deployment to simulate.

    Args:
        capacity: Requests per second that a replica answers at most.
        cold_start_seconds: Seconds from the wish for a pod to its first answer.
        min_replicas: The fewest replicas.
        max_replicas: The most replicas.
        queue_seconds: Seconds of work that may wait in a pod before requests are refused.
        window_seconds: Seconds over which the metric is averaged.
    """

    capacity: float
    cold_start_seconds: int = 60
    min_replicas: int = 2
    max_replicas: int = 1000
    queue_seconds: float = 2.0
    window_seconds: int = 30


@dataclass
class Outcome:
    """The requests, replicas and lost requests of each second."""

    target: float
    requests: list[float] = field(default_factory=list)
    replicas: list[int] = field(default_factory=list)
    """The replicas that answer requests."""
    lost: list[float] = field(default_factory=list)

    @property
    def success(self) -> float:
        """The part of the requests that were answered."""
        total = sum(self.requests)
        return 1.0 - sum(self.lost) / total if total else 1.0


def simulate(deployment: SimulatedDeployment, traffic: Sequence[float], target: float) -> Outcome:
    """Returns the outcome of traffic at a target of requests per second and replica."""
    outcome = Outcome(target)
    scaler = _Scaler(deployment, target, traffic[0])
    starting: deque[tuple[int, int]] = deque()
    """The second from which new pods answer, and their number."""
    ready, queued, window_sum = scaler.replicas, 0.0, 0.0
    for second, arrived in enumerate(traffic):
        window_sum += arrived
        if second >= deployment.window_seconds:
            window_sum -= traffic[second - deployment.window_seconds]
        while starting and starting[0][0] <= second:
            ready += starting.popleft()[1]
        if second % _SYNC_SECONDS == 0:
            rate = window_sum / min(second + 1, deployment.window_seconds)
            change = scaler.sync(second, rate)
            if change > 0:
                starting.append((second + deployment.cold_start_seconds, change))
            while change < 0 and starting:  # Pods that have not started go first.
                due, count = starting.pop()
                change += count
                if change > 0:
                    starting.append((due, change))
            ready += min(change, 0)
        capacity = ready * deployment.capacity
        queued += arrived
        queued -= min(queued, capacity)
        lost = max(0.0, queued - capacity * deployment.queue_seconds)
        queued -= lost
        outcome.requests.append(arrived)
        outcome.replicas.append(ready)
        outcome.lost.append(lost)
    return outcome


def highest_target(
    deployment: SimulatedDeployment, days: Sequence[Sequence[float]], least_success: float
) -> Outcome | None:
    """Returns the outcome of the worst day at the highest target that loses few enough requests.

    Targets are tried in steps of 5 % of the capacity, from the capacity down. On each day, at least
    the part `least_success` of the requests must be answered. Returns `None` if no target does it.
    """
    for percent in range(100, 0, -5):
        target = deployment.capacity * percent / 100
        worst: Outcome | None = None
        for day in days:
            outcome = simulate(deployment, day, target)
            if worst is None or outcome.success < worst.success:
                worst = outcome
            if worst.success < least_success:
                break
        if worst is not None and worst.success >= least_success:
            return worst
    return None


class _Scaler:
    """A simulated HorizontalPodAutoscaler: decides the replicas by the rules of `BEHAVIOR`."""

    def __init__(self, deployment: SimulatedDeployment, target: float, first_rate: float) -> None:
        self._deployment = deployment
        self._target = target
        self._rules = {way: _Rules(BEHAVIOR[way]) for way in ("scaleUp", "scaleDown")}
        self.replicas = self._within_limits(math.ceil(first_rate / target))

    def sync(self, second: int, rate: float) -> int:
        """Changes the replicas for a rate of requests per second, and returns the change."""
        ratio = rate / (self._target * self.replicas) if self.replicas else math.inf
        desired = self.replicas
        if abs(ratio - 1.0) > _TOLERANCE:
            desired = math.ceil(rate / self._target)
        desired = self._within_limits(desired)
        up, down = self._rules["scaleUp"], self._rules["scaleDown"]
        low = up.stabilized(second, desired, min)
        high = down.stabilized(second, desired, max)
        if low > self.replicas:
            change = min(low, up.limit(second, self.replicas, 1)) - self.replicas
            up.changes.append((second, change))
        elif high < self.replicas:
            change = max(high, down.limit(second, self.replicas, -1)) - self.replicas
            down.changes.append((second, -change))
        else:
            change = 0
        self.replicas += change
        return change

    def _within_limits(self, desired: int) -> int:
        return max(self._deployment.min_replicas, min(self._deployment.max_replicas, desired))


class _Rules:
    """The rules for scaling up or down, with the past recommendations and changes."""

    def __init__(self, rules: Object) -> None:
        self._window = rules["stabilizationWindowSeconds"]
        self._policies = rules["policies"]
        self._past: deque[tuple[int, int]] = deque()
        self.changes: deque[tuple[int, int]] = deque(maxlen=200)

    def stabilized(self, second: int, desired: int, choose: Callable[[Iterable[int]], int]) -> int:
        """Returns the `min` or `max` of the recommendations within the stabilization window."""
        self._past.append((second, desired))
        while self._past[0][0] < second - self._window:
            self._past.popleft()
        return choose(count for _, count in self._past)

    def limit(self, second: int, replicas: int, sign: int) -> int:
        """Returns the largest (`sign=1`) or smallest (`-1`) count that the policies allow now."""
        limits: list[int] = []
        for policy in self._policies:
            since = second - policy["periodSeconds"]
            start = replicas - sign * sum(count for at, count in self.changes if at > since)
            if policy["type"] == "Pods":
                limits.append(start + sign * policy["value"])
            else:
                limits.append(math.ceil(start * (1 + sign * policy["value"] / 100)))
        return max(limits) if sign > 0 else min(limits)


DAY = 86_400
_BURSTS = 40
_FLASHES = 6


def diurnal(peak: float, seed: int) -> list[float]:
    """Returns a day with a slow rise to the peak, a fall to a fifth of it, and noise of 3 %."""
    draw = random.Random(seed)
    return [
        peak * (0.6 - 0.4 * math.cos(2 * math.pi * second / DAY)) * draw.gauss(1.0, 0.03)
        for second in range(DAY)
    ]


def bursty(peak: float, seed: int) -> list[float]:
    """Returns a day with bursts of 20 to 60 % more requests, one to five minutes long."""
    draw = random.Random(seed)
    traffic = diurnal(peak, seed)
    for _ in range(_BURSTS):
        factor = draw.uniform(1.2, 1.6)
        start, length = draw.randrange(DAY), draw.randrange(60, 300)
        for second in range(start, min(DAY, start + length)):
            traffic[second] *= factor
    return _scaled(traffic, peak)


def flash(peak: float, seed: int) -> list[float]:
    """Returns a day in which a few times the requests grow two- to fourfold in 30 to 120 s."""
    draw = random.Random(seed)
    traffic = diurnal(peak, seed)
    for index in range(_FLASHES):
        factor, rise = draw.uniform(2.0, 4.0), draw.randrange(30, 120)
        length = draw.randrange(300, 1200)
        start = DAY * index // _FLASHES + draw.randrange(DAY // _FLASHES - length - 2 * rise)
        for second in range(start, start + length + 2 * rise):
            edge = min(second - start, start + length + 2 * rise - second)
            traffic[second] *= 1 + (factor - 1) * min(1.0, edge / rise)
    return _scaled(traffic, peak)


def lost_region(peak: float, seed: int) -> list[float]:
    """Returns a day at whose peak a region of the same size fails, and its requests come here."""
    traffic = diurnal(peak / 2, seed)
    noon = DAY // 2
    return [value * (2 if second >= noon else 1) for second, value in enumerate(traffic)]


def _scaled(traffic: list[float], peak: float) -> list[float]:
    factor = peak / max(traffic)
    return [value * factor for value in traffic]


TRAFFIC: dict[str, Callable[[float, int], list[float]]] = {
    "diurnal": diurnal,
    "bursty": bursty,
    "flash": flash,
    "lost-region": lost_region,
}
"""The kinds of traffic by name. Each takes the requests per second at the peak, and a seed."""


def read_traffic(file: str) -> list[float]:
    """Returns the last column of a CSV file: requests per second, a line for each second.

    Raises:
        InvalidInputError: The file can't be read, or a value is not a number of at least zero.
    """
    try:
        with Path(file).open(encoding="utf-8", newline="") as lines:
            cells = [(number, row[-1]) for number, row in enumerate(csv.reader(lines), 1) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInputError(f"Can't read {file}: {error}") from error
    traffic = []
    for number, cell in cells:
        try:
            value = float(cell)
        except ValueError:
            if number == 1:  # The names of the columns.
                continue
            value = math.nan
        if not 0 <= value < math.inf:
            raise InvalidInputError(
                f"{file}, line {number}: {cell!r} is not a number of requests per second."
            )
        traffic.append(value)
    if not traffic:
        raise InvalidInputError(f"{file} has no numbers.")
    return traffic
