"""The access log: one line of JSON for each request of any protocol.

The thread that answers a request collects the values; the thread of `BackgroundWriter` formats and
writes the line.
"""

import json
import logging
import os
import random
import re
import select
import sys
import time
from functools import lru_cache
from typing import Any

from keras_deepseek.inference.monitoring.background_writer import BackgroundWriter
from keras_deepseek.inference.monitoring.request_trace import RequestTrace
from keras_deepseek.inference.protocols.json_text import to_json
from keras_deepseek.stderr_log import has_users_handler

LOGGER = "keras_deepseek.inference.access"

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

_MAX_PATH = 2048
"""Characters of a path that are logged, so that waiting lines have a limited size."""

_ATOMIC_BYTES = 4096
"""The largest write to a pipe that the lines of other processes can't break apart."""


_Line = dict[str, Any]


class AccessLog:
    """Logs requests to the logger `keras_deepseek.inference.access`.

    If the logger has no handler, the lines go to the standard error. A background thread writes
    them some milliseconds later, because their reader may be slow or gone. When too many lines
    wait, further lines are dropped, and a later line has their number.
    """

    def __init__(self) -> None:
        self._logger = logging.getLogger(LOGGER)
        if self._logger.level == logging.NOTSET:
            self._logger.setLevel(logging.INFO)
        self._lost = 0
        self._writer = BackgroundWriter(self._write_lines, name="access-log")

    def write(
        self,
        trace: RequestTrace,
        *,
        method: str,
        path: str,
        status: int | str,
        size: int,
        seconds: float,
        client: str,
    ) -> None:
        """Logs a request that has ended. Never blocks.

        `path` has no query, which may hold a secret. `status` is as the protocol writes it, `200`
        or `"OK"`; `size` is the bytes of the response body.
        """
        if not self._logger.isEnabledFor(logging.INFO):
            return
        self._writer.put(
            {  # The values of the keys with `milliseconds` are in seconds until `_format_line`.
                "time": time.time(),
                "protocol": trace.protocol,
                "method": method,
                "path": path[:_MAX_PATH],
                "status": status,
                "bytes": size,
                "milliseconds": seconds,
                "queue_milliseconds": trace.queue_seconds,
                "model_milliseconds": trace.model_seconds,
                "batch_rows": trace.batch_rows,
                "cached": trace.is_cached,
                "model": trace.model,
                "version": trace.version,
                "client": client,
                "request_id": trace.request_id,
            }
        )

    def flush(self) -> None:
        """Waits until all lines so far are written, or for one second."""
        self._writer.flush()

    def close(self) -> None:
        """Writes the waiting lines and ends the thread. Gives up after one second."""
        self._writer.close()

    def _write_lines(self, lines: list[_Line], dropped: int) -> None:
        texts = [_format_line(line) for line in lines]
        dropped += self._lost
        if dropped:
            self._lost = 0
            report = {"time": _format_time(time.time()), "dropped": dropped}
            texts.append(json.dumps(report, separators=(",", ":")))
        if has_users_handler(self._logger):
            for text in texts:
                self._logger.info(text)
            return
        pieces = _join_lines(texts)
        for number, piece in enumerate(pieces):
            try:
                _write_to_stderr(piece)
            except (OSError, ValueError):  # A broken or closed stream may work again later.
                unwritten = sum(piece.count("\n") for piece in pieces[number:])
                if dropped:
                    unwritten -= 1  # The report of dropped lines is no line of a request.
                self._lost = dropped + unwritten
                return


def choose_request_id(offered: str | None) -> str:
    """Returns the client's request id if it is 1 to 128 visible ASCII characters, or a new id."""
    if offered is not None and _REQUEST_ID.fullmatch(offered):
        return offered
    return f"{random.getrandbits(128):032x}"


def _format_line(line: _Line) -> str:
    line["time"] = _format_time(line["time"])
    for key in ("milliseconds", "queue_milliseconds", "model_milliseconds"):
        if line[key] is not None:  # Until here it is in seconds.
            line[key] = round(1000 * line[key], 3)
    # JSON escapes line breaks, and Python's `json` also all that is not ASCII. So a path can't
    # forge a line or send control codes to a terminal.
    text = to_json(line)
    return text.decode() if text.isascii() else json.dumps(line, separators=(",", ":"))


def _format_time(seconds: float) -> str:
    whole = int(seconds)
    return f"{_format_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@lru_cache(2)
def _format_second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))


def _join_lines(lines: list[str]) -> list[str]:
    """Joins lines into pieces that a pipe takes in one write. A longer line is a piece alone."""
    pieces: list[str] = []
    waiting: list[str] = []
    size = 0
    for line in lines:
        if waiting and size + len(line) >= _ATOMIC_BYTES:
            pieces.append("".join(waiting))
            waiting, size = [], 0
        waiting.append(f"{line}\n")
        size += len(line) + 1
    return [*pieces, "".join(waiting)] if waiting else pieces


def _write_to_stderr(text: str) -> None:
    stream = sys.stderr
    if stream is None:
        raise OSError("There is no standard error.")
    if sys.__stderr__ is None or stream is not sys.__stderr__:  # In a notebook, or in a test.
        stream.write(text)
        stream.flush()
        return
    # A write to the stream that hangs would hold its lock, and the process could not end.
    data, descriptor = text.encode("ascii"), sys.__stderr__.fileno()
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # The file descriptor is in non-blocking mode.
            select.select((), (descriptor,), ())
