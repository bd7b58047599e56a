"""Writes a sample of the requests and their answers to a file, for `replay`.

The thread that runs the model copies what is sampled and hands it on; another one writes.
"""

import base64
import json
import logging
import os
import queue
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.batching.batch import Request
from keras_deepseek.inference.protocols.dtypes import dtype_of

MAX_BYTES = 64 * 2**20
NUM_FILES = 5
_MAX_WAITING = 256
"""Requests that wait to be written. Where the disk is slower, the rest are passed over."""

_logger = logging.getLogger(__name__)
_Arrays = dict[str, Array]


class RequestLog:
    """A file of JSON lines: a request, its inputs, and its outputs, as base64.

    The file is for its owner to read alone: it holds what clients sent.

    Args:
        path: The path of the file. What is there is appended to.
        sample: float above 0, up to 1. The part of requests that is written. Defaults to `0.01`.
        max_bytes: integer. A larger file is renamed, to `PATH.1`, before more is written. Defaults
            to 64 MiB (`67108864`).
        num_files: integer. Renamed files that are kept. Defaults to `5`.
        draw: Function that returns a random number from 0 to 1. Defaults to `random.random`.

    Raises:
        InvalidInputError: The file can't be written, or an argument is not one of these.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sample: float = 0.01,
        *,
        max_bytes: int = MAX_BYTES,
        num_files: int = NUM_FILES,
        draw: Callable[[], float] = random.random,
    ) -> None:
        if isinstance(sample, bool) or not isinstance(sample, int | float) or not 0 < sample <= 1:
            raise InvalidInputError(
                f"Received sample={sample!r}. Expected a number above 0, up to 1."
            )
        self._path = Path(path)
        self._sample = sample
        self._max_bytes = max_bytes
        self._num_files = num_files
        self._draw = draw
        self._has_failed = False
        self._dropped = 0
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(_MAX_WAITING)
        try:
            self._file = self._open()
        except OSError as error:
            raise InvalidInputError(
                f"Can't write requests to {str(self._path)!r}: {error}."
            ) from error
        self._thread = threading.Thread(target=self._work, name="request-log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """How many requests of the sample were not written."""
        return self._dropped

    def watch(
        self, model: str, version: int, inputs: _Arrays, deliver: Callable[[Request], None]
    ) -> Callable[[Request], None]:
        """Returns what delivers the answer, and writes the request down if it is in the sample.

        Args:
            model: string. The model's name.
            version: integer. The version that answers.
            inputs: dict of arrays by input name.
            deliver: Function of the `Request`.
        """
        if self._draw() >= self._sample:
            return deliver
        entry = {"time": time.time(), "model": model, "version": version, "inputs": _copy(inputs)}

        def deliver_and_write(request: Request) -> None:
            if request.outputs is not None:
                entry["outputs"] = _copy(request.outputs)
            else:
                entry["error"] = type(request.error).__name__
            deliver(request)
            try:
                self._queue.put_nowait(entry)
            except queue.Full:
                self._dropped += 1

        return deliver_and_write

    def close(self) -> None:
        """Returns when all that was sampled is written."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (entry := self._queue.get()) is not None:
            try:
                self._write(entry)
            except (OSError, ValueError) as error:
                self._dropped += 1
                if not self._has_failed:  # A full disk is told of once.
                    self._has_failed = True
                    _logger.warning("Requests can't be written to %s: %s", self._path, error)
        self._file.close()

    def _write(self, entry: dict[str, Any]) -> None:
        for name in ("inputs", "outputs"):
            if name in entry:
                entry[name] = {key: encode_array(array) for key, array in entry[name].items()}
        line = json.dumps(entry).encode() + b"\n"
        if self._file.tell() and self._file.tell() + len(line) > self._max_bytes:
            self._rotate()
        self._file.write(line)
        self._file.flush()

    def _rotate(self) -> None:
        self._file.close()
        for number in range(self._num_files, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            newer = self._path.with_name(f"{self._path.name}.{number - 1}")
            newer = self._path if number == 1 else newer
            if newer.exists():
                newer.replace(older)
        self._file = self._open()

    def _open(self) -> Any:
        return open(self._path, "ab", opener=lambda path, flags: os.open(path, flags, 0o600))


def encode_array(array: Array) -> dict[str, Any]:
    """Returns an array as JSON can hold it.

    Args:
        array: An array of numbers, or of strings.

    Example:

    >>> encode_array(np.array([[1, 2]], "uint8"))
    {'dtype': 'uint8', 'shape': [1, 2], 'data': 'AQI='}
    """
    content: dict[str, Any] = {"dtype": str(array.dtype), "shape": list(array.shape)}
    if array.dtype.kind == "O":
        values = [
            value if isinstance(value, bytes) else str(value).encode()
            for value in array.ravel().tolist()
        ]
        return content | {"data": [base64.b64encode(value).decode() for value in values]}
    return content | {"data": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()}


def decode_array(content: Any) -> Array:
    """Returns what `encode_array` was given.

    Args:
        content: dict.

    Raises:
        InvalidInputError: It is none that `encode_array` wrote.
    """
    try:
        dtype, shape, data = content["dtype"], content["shape"], content["data"]
        if dtype == "object":
            values = np.empty(len(data), object)
            values[:] = [base64.b64decode(value, validate=True) for value in data]
            return values.reshape(shape)
        raw = base64.b64decode(data, validate=True)
        return np.frombuffer(raw, dtype_of(dtype).numpy).reshape(shape)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(f"An array that no request log holds: {error}.") from error


def _copy(arrays: _Arrays) -> _Arrays:
    """Copies what its owner may change, or what is a part of a whole batch."""
    return {name: array.copy() for name, array in arrays.items()}
