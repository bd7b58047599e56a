"""A file with a sample of the requests and their answers.

The thread that runs the model copies a sampled request; `BackgroundWriter`'s thread writes it.
"""

import base64
import json
import logging
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.checks import check_path
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.batching.batch import Request
from keras_deepseek.inference.monitoring.background_writer import BackgroundWriter

DEFAULT_SAMPLE = 0.01
MAX_BYTES = 64 * 2**20
NUM_FILES = 5
_MAX_WAITING = 256
"""Requests that may wait to be written. If the disk is slower, further samples are dropped."""

_logger = logging.getLogger(__name__)
_Arrays = dict[str, Array]
_Entry = dict[str, Any]


class RequestLog:
    """A file of JSON lines: a request, its inputs, and its outputs, as base64.

    Of a language model: the request and the response in OpenAI's form.

    Only the owner can read the file, because it holds what clients sent. An existing file is
    appended to. `sample` is the fraction of requests to write. A file that would exceed `max_bytes`
    is renamed to `PATH.1` first; `num_files` renamed ones are kept.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sample: float = DEFAULT_SAMPLE,
        *,
        max_bytes: int = MAX_BYTES,
        num_files: int = NUM_FILES,
        draw: Callable[[], float] = random.random,
    ) -> None:
        if isinstance(sample, bool) or not isinstance(sample, int | float) or not 0 < sample <= 1:
            raise InvalidInputError(
                f"`sample` must be a number above 0, up to 1; received {sample!r}."
            )
        self._path = Path(check_path("log_requests", path))
        self._sample = sample
        self._max_bytes = max_bytes
        self._num_files = num_files
        self._draw = draw
        self._has_failed = False
        self._dropped = 0
        try:
            self._file = self._open()
        except OSError as error:
            raise InvalidInputError(
                f"Can't write requests to {str(self._path)!r}: {error}. `log_requests` must be the "
                "path of a file in an existing folder that this process may write to."
            ) from error
        self._writer = BackgroundWriter(
            self._write_entries, name="request-log", max_waiting=_MAX_WAITING
        )

    @property
    def dropped(self) -> int:
        """The number of sampled requests that were not written."""
        return self._dropped

    def watch(
        self, model: str, version: int, inputs: _Arrays, deliver: Callable[[Request], None]
    ) -> Callable[[Request], None]:
        """Returns a wrapper of `deliver` that logs the request if it is in the sample."""
        entry = self._draw_entry(model, version)
        if entry is None:
            return deliver
        entry["inputs"] = _copy(inputs)

        def deliver_and_write(request: Request) -> None:
            if request.outputs is not None:
                entry["outputs"] = _copy(request.outputs)
            else:
                entry["error"] = type(request.error).__name__
            deliver(request)
            self._writer.put(entry)

        return deliver_and_write

    def watch_text(
        self, model: str, version: int, describe: Callable[[], _Entry]
    ) -> Callable[[], None] | None:
        """Returns a function that logs a request to a language model, or `None` if it isn't drawn.

        Call it when the answer is over. `describe`, which the writing thread calls, returns the
        request and the response in OpenAI's form.
        """
        entry = self._draw_entry(model, version)
        if entry is None:
            return None
        entry["describe"] = describe
        return lambda: self._writer.put(entry)

    def _draw_entry(self, model: str, version: int) -> _Entry | None:
        """Returns the beginning of a request's entry, or `None` if it is not in the sample."""
        if self._draw() >= self._sample:
            return None
        return {"time": time.time(), "model": model, "version": version}

    def close(self) -> None:
        """Waits until all sampled requests are written, and closes the file."""
        self._writer.close(timeout=None)
        self._file.close()

    def _write_entries(self, entries: list[_Entry], dropped: int) -> None:
        self._dropped += dropped
        for entry in entries:
            try:
                self._write(entry)
            except (OSError, TypeError, ValueError) as error:
                self._dropped += 1
                if not self._has_failed:
                    self._has_failed = True
                    _logger.warning(
                        "Can't write requests to %s: %s. This is logged once.", self._path, error
                    )

    def _write(self, entry: _Entry) -> None:
        for name in ("inputs", "outputs"):
            if name in entry:
                entry[name] = {key: encode_array(array) for key, array in entry[name].items()}
        if "describe" in entry:
            entry |= entry.pop("describe")()
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
    """Returns an array of numbers or strings as a dict for JSON, its bytes as base64."""
    content: dict[str, Any] = {"dtype": str(array.dtype), "shape": list(array.shape)}
    if array.dtype.kind == "O":
        values = [
            value if isinstance(value, bytes) else str(value).encode()
            for value in array.ravel().tolist()
        ]
        return content | {"data": [base64.b64encode(value).decode() for value in values]}
    return content | {"data": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()}


def _copy(arrays: _Arrays) -> _Arrays:
    """Copies arrays that the caller may change, or that are views of a whole batch."""
    return {name: array.copy() for name, array in arrays.items()}
