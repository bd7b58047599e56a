"""The record of one request of any protocol, for metrics, logs and traces.

A server makes one for each request and passes it to `ServingEngine.dispatch`, which sets the model
and the version that answer. `EngineMonitor.end` counts it when the response is sent.
"""

import time
from contextvars import ContextVar

from keras_deepseek.inference.batching.batch import Request


class RequestTrace:
    """One request, from the time it was read until its response is sent.

    `model` and `version` name the version that answers. They stay empty if none does: a name that a
    client makes up must not become a label of a metric.
    """

    __slots__ = (
        "call",
        "client",
        "connection",
        "has_arrived",
        "model",
        "protocol",
        "request",
        "request_id",
        "started",
        "version",
    )

    def __init__(self, protocol: str = "", call: str = "") -> None:
        self.protocol = protocol
        self.call = call
        self.client = ""
        """The address of a gRPC client, which is for shared memory."""
        self.connection: int | None = None
        """The file descriptor of the client's socket, where one client has it for itself."""
        self.model = ""
        self.version = ""
        self.request: Request | None = None
        self.request_id = ""
        self.has_arrived = False
        """True while `EngineMonitor` counts the request as in flight."""
        self.started = time.monotonic()

    @property
    def log_suffix(self) -> str:
        """The end of a log message, with the request's id; empty if it has none."""
        return f" Request: {self.request_id}." if self.request_id else ""

    @property
    def is_cached(self) -> bool:
        """True if the response came from the cache."""
        return self.request is not None and self.request.is_cached

    @property
    def queue_seconds(self) -> float | None:
        """The seconds that the request waited for its batch, or `None` if it did not run."""
        batch = None if self.request is None else self.request.decision
        if self.request is None or batch is None:
            return None
        return max(batch.started - self.request.arrived, 0.0)

    @property
    def model_seconds(self) -> float | None:
        """The seconds that the model took for the last batch, or `None` if it did not run."""
        batch = None if self.request is None else self.request.decision
        return None if batch is None else batch.seconds

    @property
    def batch_rows(self) -> int | None:
        """The row count of the last batch, without padding, or `None` if it did not run."""
        batch = None if self.request is None else self.request.decision
        return None if batch is None else batch.rows


current_trace: ContextVar[RequestTrace | None] = ContextVar("current_trace", default=None)
"""The trace of the request that the current `asyncio` task answers. Only gRPC sets it."""
