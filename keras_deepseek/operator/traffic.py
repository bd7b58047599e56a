"""Traffic to size a deployment for: requests per second, second by second."""

import csv
import math
import random
from collections.abc import Callable
from pathlib import Path

from keras_deepseek.errors import InvalidInputError

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
