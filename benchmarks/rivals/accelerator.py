"""A simulated accelerator: a batch of n rows takes 4 + 0.25 n ms, in which the processor is idle.

It counts in a file that the benchmark reads: what a server had it do, whichever process it runs in.
A row that begins with one of the numbers below makes it slow, or breaks it. Where a variable names
an ONNX file, it is no simulation: ONNX Runtime computes, in one thread.
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

MODEL_VARIABLE = "ACCELERATOR_MODEL"
"""An ONNX file with one input of float32, (rows, features), and one output, where this is set."""

NUM_FEATURES = 16

SLOW, EXITS, HANGS, FAILS = -6.0, -7.0, -8.0, -9.0
SLOW_SECONDS = 1.5


def open_session(path: str) -> Any:
    """Returns ONNX Runtime's session of a file, of one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])


class Accelerator:
    """Doubles its input, after the time that a batch takes; or computes a real model's output."""

    def __init__(self) -> None:
        path = Path(os.environ[VARIABLE])
        if not path.exists():
            path.write_bytes(bytes(_COUNTS.size))
        self._file = path.open("r+b")
        self._memory = mmap.mmap(self._file.fileno(), _COUNTS.size)
        fixed = os.environ.get(TIME_VARIABLE)
        self._fixed = None if fixed is None else float(fixed)
        model = os.environ.get(MODEL_VARIABLE)
        self._session = None if model is None else open_session(model)
        self.num_features = self.num_outputs = NUM_FEATURES
        if self._session is not None:
            self.num_features = self._session.get_inputs()[0].shape[1]
            self.num_outputs = self._session.get_outputs()[0].shape[1]

    def run(self, x: Any) -> Any:
        """Returns `2 * x`, or the model's output, for an array of (rows, features)."""
        start = time.monotonic()
        y = self._simulate(x) if self._session is None else self._compute(x)
        batches, rows, seconds = _COUNTS.unpack_from(self._memory)
        took = time.monotonic() - start
        _COUNTS.pack_into(self._memory, 0, batches + 1, rows + len(x), seconds + took)
        return y

    def _simulate(self, x: Any) -> Any:
        seconds = SECONDS_A_BATCH + SECONDS_A_ROW * len(x) if self._fixed is None else self._fixed
        if seconds:
            time.sleep(seconds)
        _heed(set(x[:, 0].tolist()))
        return 2 * x

    def _compute(self, x: Any) -> Any:
        return self._session.run(None, {self._session.get_inputs()[0].name: x})[0]


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
