"""Writes one line of JSON for each request, whatever protocol it came by.

What a line says is noted when the request ends; `background_writer` has the thread that writes it.
"""

import json
import logging
import os
import random
import re
import select
import sys
import time
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

from keras_deepseek.inference.monitoring.background_writer import BackgroundWriter
from keras_deepseek.inference.monitoring.request_trace import RequestTrace

LOGGER = "keras_deepseek.inference.access"

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

_MAX_PATH = 2048
"""Characters of a path that are logged: lines that wait have a size, too."""

_ATOMIC_BYTES = 4096
"""A pipe takes so many in one piece: what others write there comes before or behind, not within."""


class _Line(NamedTuple):
    time: float
    protocol: str
    method: str
    path: str
    status: int | str
    size: int
    seconds: float
    queue_seconds: float | None
    model_seconds: float | None
    batch_rows: int | None
    is_cached: bool
    model: str
    version: str
    client: str
    request_id: str


class AccessLog:
    """Writes to the logger `keras_deepseek.inference.access`.

    Where nobody has set that logger up, neither a level nor a handler, its lines go to the standard
    error. They are written by a thread of its own, some milliseconds later: what reads them may be
    slow, or gone. Lines that too many others wait before are dropped, and a line says how many.
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
        """Notes a line, without waiting for anything.

        Args:
            trace: `RequestTrace`, with the request's id.
            method: string. As in `"POST"`.
            path: string. Without the query, which may hold a secret.
            status: integer or string. In the protocol's words.
            size: integer. Bytes of the answer's body.
            seconds: float. That it took.
            client: string. The address of the other end.
        """
        if not self._logger.isEnabledFor(logging.INFO):
            return
        self._writer.put(
            _Line(
                time.time(),
                trace.protocol,
                method,
                path[:_MAX_PATH],
                status,
                size,
                seconds,
                trace.queue_seconds,
                trace.model_seconds,
                trace.batch_rows,
                trace.is_cached,
                trace.model,
                trace.version,
                client,
                trace.request_id,
            )
        )

    def flush(self) -> None:
        """Returns when what was noted is written, or after a second."""
        self._writer.flush()

    def close(self) -> None:
        """Writes what was noted, and ends the thread. Who reads nothing is left after a second."""
        self._writer.close()

    def _write_lines(self, lines: list[_Line], dropped: int) -> None:
        texts = [_format_line(line) for line in lines]
        dropped += self._lost
        if dropped:
            self._lost = 0
            told = {"time": _format_time(time.time()), "dropped": dropped}
            texts.append(json.dumps(told, separators=(",", ":")))
        if self._logger.hasHandlers():
            for text in texts:
                self._logger.info(text)
            return
        pieces = _join_lines(texts)
        for number, piece in enumerate(pieces):
            try:
                _write_to_stderr(piece)
            except (OSError, ValueError):  # Broken, or closed: it may be well again later.
                left = sum(piece.count("\n") for piece in pieces[number:])
                self._lost = dropped + left - bool(dropped)  # That it was told is no request.
                return


def choose_request_id(offered: str | None) -> str:
    """Returns the client's id of a request, or a new one where it has none that can be logged.

    Args:
        offered: string or `None`. Up to 128 visible characters of ASCII are taken over.
    """
    if offered is not None and _REQUEST_ID.fullmatch(offered):
        return offered
    return f"{random.getrandbits(128):032x}"


def _format_line(line: _Line) -> str:
    content = {
        "time": _format_time(line.time),
        "protocol": line.protocol,
        "method": line.method,
        "path": line.path,
        "status": line.status,
        "bytes": line.size,
        "milliseconds": _milliseconds(line.seconds),
        "queue_milliseconds": _milliseconds(line.queue_seconds),
        "model_milliseconds": _milliseconds(line.model_seconds),
        "batch_rows": line.batch_rows,
        "cached": line.is_cached,
        "model": line.model,
        "version": line.version,
        "client": line.client,
        "request_id": line.request_id,
    }
    # JSON escapes line breaks, and Python's what is not ASCII: a path can't forge a line of its
    # own, nor speak to a terminal.
    fast = _fast_json() if line.path.isascii() else None
    if fast is None:
        return json.dumps(content, separators=(",", ":"))
    return fast(content).decode()


@cache
def _fast_json() -> Callable[[Any], bytes] | None:
    try:
        import orjson
    except ImportError:
        return None
    dumps: Callable[[Any], bytes] = orjson.dumps
    return dumps


def _format_time(seconds: float) -> str:
    whole = int(seconds)
    return f"{_format_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@lru_cache(2)
def _format_second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)


def _join_lines(lines: list[str]) -> list[str]:
    """Returns pieces of whole lines that a pipe takes each at once; a longer line is one alone."""
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
    if sys.__stderr__ is None or stream is not sys.__stderr__:  # A notebook's, or a test's.
        stream.write(text)
        stream.flush()
        return
    # Not by the stream itself: who hangs in it holds its lock, also when the process ends.
    data, place = text.encode("ascii"), sys.__stderr__.fileno()
    while data:
        try:
            data = data[os.write(place, data) :]
        except BlockingIOError:  # Somebody has made it one that does not wait.
            select.select((), (place,), ())
