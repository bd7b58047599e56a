"""A simulated accelerator: a batch of n rows takes 4 + 0.25 n ms, in which the processor is idle.

It counts in a file that the benchmark reads: what a server had it do, whichever process it runs in.
A row that begins with one of the numbers below makes it slow, or breaks it.
"""

import mmap
import os
import struct
import time
from pathlib import Path
from typing import Any

SECONDS_A_BATCH = 0.004
SECONDS_A_ROW = 0.00025
_COUNTS = struct.Struct("ddd")
VARIABLE = "ACCELERATOR_COUNTS"
TIME_VARIABLE = "ACCELERATOR_SECONDS"
"""What a batch takes, whatever its rows, where this is set."""

SLOW, EXITS, HANGS, FAILS = -6.0, -7.0, -8.0, -9.0
SLOW_SECONDS = 1.5


class Accelerator:
    """Doubles its input, after the time that a batch takes."""

    def __init__(self) -> None:
        path = Path(os.environ[VARIABLE])
        if not path.exists():
            path.write_bytes(bytes(_COUNTS.size))
        self._file = path.open("r+b")
        self._memory = mmap.mmap(self._file.fileno(), _COUNTS.size)
        fixed = os.environ.get(TIME_VARIABLE)
        self._fixed = None if fixed is None else float(fixed)

    def run(self, x: Any) -> Any:
        """Returns `2 * x` for an array, rows first."""
        start = time.monotonic()
        seconds = SECONDS_A_BATCH + SECONDS_A_ROW * len(x) if self._fixed is None else self._fixed
        if seconds:
            time.sleep(seconds)
        _heed(set(x[:, 0].tolist()))
        batches, rows, seconds = _COUNTS.unpack_from(self._memory)
        took = time.monotonic() - start
        _COUNTS.pack_into(self._memory, 0, batches + 1, rows + len(x), seconds + took)
        return 2 * x


def _heed(first: set[float]) -> None:
    if SLOW in first:
        time.sleep(SLOW_SECONDS)
    if EXITS in first:
        os._exit(7)
    if HANGS in first:
        time.sleep(3600)
    if FAILS in first:
        raise ArithmeticError("The accelerator was asked to fail.")


def read_counts(path: Path) -> tuple[float, float, float]:
    """Returns the batches, rows and busy seconds so far."""
    return _COUNTS.unpack(path.read_bytes()) if path.exists() else (0.0, 0.0, 0.0)
