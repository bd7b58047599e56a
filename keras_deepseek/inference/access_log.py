"""Writes one line of JSON for each request, whatever protocol it came by."""

import json
import logging
import re
import sys
import time
import uuid

from keras_deepseek.inference.request_trace import RequestTrace

LOGGER = "keras_deepseek.inference.access"

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class AccessLog:
    """Writes to the logger `keras_deepseek.inference.access`.

    Where nobody has set that logger up, neither a level nor a handler, its lines go to the standard
    error. They are written by the thread that answers requests: a pipe that nobody empties would
    hold it up.
    """

    def __init__(self) -> None:
        self._logger = logging.getLogger(LOGGER)
        if self._logger.level == logging.NOTSET:
            self._logger.setLevel(logging.INFO)
        if not self._logger.hasHandlers():
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(logging.Formatter("%(message)s"))
            self._logger.addHandler(handler)

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
        """Writes a line.

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
        line = {
            "time": _format_time(time.time()),
            "method": method,
            "path": path,
            "status": status,
            "bytes": size,
            "milliseconds": _milliseconds(seconds),
            "queue_milliseconds": _milliseconds(trace.queue_seconds),
            "model_milliseconds": _milliseconds(trace.model_seconds),
            "batch_rows": trace.batch_rows,
            "cached": trace.is_cached,
            "model": trace.model,
            "version": trace.version,
            "client": client,
            "request_id": trace.request_id,
        }
        # JSON escapes line breaks: a path can't forge a line of its own.
        self._logger.info(json.dumps(line))


def choose_request_id(offered: str | None) -> str:
    """Returns the client's id of a request, or a new one where it has none that can be logged.

    Args:
        offered: string or `None`. Up to 128 visible characters of ASCII are taken over.
    """
    if offered is not None and _REQUEST_ID.fullmatch(offered):
        return offered
    return uuid.uuid4().hex


def _format_time(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)
