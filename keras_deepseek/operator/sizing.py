"""The sizing of a deployment: the capacity of a replica, and the target that keeps requests."""

import http.client
import math
import threading
import time
import urllib.parse
from collections.abc import Sequence

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.operator.simulation import (
    TRAFFIC,
    Outcome,
    SimulatedDeployment,
    highest_target,
    read_traffic,
)

_CONNECTIONS = 32
_WARM_UP_SECONDS = 1.0
_OVERLOADED = (429, 503)  # Statuses that are no fault of the request.
_SEEDS = 3  # Random days of each kind of traffic.
_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 72


def measure_capacity(url: str, body: bytes, seconds: float = 10.0) -> float:
    """Returns the requests per second that a server answers under full load.

    Args:
        url: The URL of a prediction, as `http://127.0.0.1:8501/v1/models/digits:predict`.
        body: The JSON of a typical request.
        seconds: The time to measure, after a second to warm up.

    Raises:
        InvalidInputError: The URL is none, or the server refuses the request.
    """
    parts = urllib.parse.urlsplit(url)
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    if parts.scheme not in kinds or not parts.hostname:
        raise InvalidInputError(
            f"{url!r} is not a URL of a server. Expected http://HOST:PORT/PATH."
        )
    path = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
    counts = [0] * _CONNECTIONS
    errors: list[str] = []
    start = time.monotonic() + _WARM_UP_SECONDS

    def load(number: int) -> None:
        connection = kinds[parts.scheme](parts.hostname or "", parts.port, timeout=30)
        try:
            while (now := time.monotonic()) < start + seconds and not errors:
                headers = {"Content-Type": "application/json"}
                connection.request("POST", path, body, headers)
                answer = connection.getresponse()
                text = answer.read()
                if answer.status not in (http.client.OK, *_OVERLOADED):
                    line = text[:200].decode(errors="replace")
                    errors.append(f"{url} answered {answer.status}: {line}")
                elif answer.status == http.client.OK and now >= start:
                    counts[number] += 1
        except (OSError, http.client.HTTPException) as error:
            errors.append(f"Can't reach {url}: {error}")
        finally:
            connection.close()

    threads = [threading.Thread(target=load, args=(number,)) for number in range(_CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise InvalidInputError(errors[0])
    if not sum(counts):
        raise InvalidInputError(f"{url} answered no request within {seconds:g} s.")
    return sum(counts) / seconds


def describe_sizes(
    deployment: SimulatedDeployment, peak: float, traffic: Sequence[str], least_success: float
) -> str:
    """Returns a text with the highest target for each kind of traffic, and a drawing of its day.

    Args:
        deployment: The deployment.
        peak: The requests per second at the peak.
        traffic: Names of `TRAFFIC`, or CSV files.
        least_success: The part of the requests that must be answered.
    """
    seconds = deployment.cold_start_seconds
    parts = [f"A replica answers {deployment.capacity:.4g} requests/s and starts in {seconds} s."]
    for name in traffic:
        days = (
            [TRAFFIC[name](peak, seed) for seed in range(_SEEDS)]
            if name in TRAFFIC
            else [read_traffic(name)]
        )
        outcome = highest_target(deployment, days, least_success)
        if outcome is None:
            parts.append(
                f"{name}: no target keeps {least_success:.3%} of the requests. Shorten the cold "
                "start, let requests wait longer, or keep more replicas."
            )
            continue
        percent = 100 * outcome.target / deployment.capacity
        parts.append(
            f"{name}: target {outcome.target:.4g} requests/s ({percent:.0f} % of the capacity), "
            f"{outcome.success:.4%} answered, {max(outcome.replicas)} replicas at most\n"
            f"{draw(outcome)}"
        )
    return "\n\n".join(parts)


def draw(outcome: Outcome) -> str:
    """Returns requests, replicas and lost requests over time, as three lines of bars."""
    rows: dict[str, Sequence[float]] = {
        "requests/s": outcome.requests,
        "replicas": outcome.replicas,
        "lost/s": outcome.lost,
    }
    return "\n".join(
        f"  {name:>10} {_bars(values)} max {max(values):.4g}" for name, values in rows.items()
    )


def _bars(values: Sequence[float]) -> str:
    size = math.ceil(len(values) / _WIDTH)
    heights = [max(values[start : start + size]) for start in range(0, len(values), size)]
    top = max(heights) or 1.0
    return "".join(_BARS[math.ceil(height / top * (len(_BARS) - 1))] for height in heights)
