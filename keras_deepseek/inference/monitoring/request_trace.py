"""What is noted of one request while it is answered, whatever protocol it came by.

A protocol's server makes one for each request and gives it to `ServingEngine.dispatch`, which notes
who answers; `EngineMonitor.end` takes it when the answer is sent.
"""

import time
from contextvars import ContextVar

from keras_deepseek.inference.batching.batch import Request


class RequestTrace:
    """One request, from when it was read to when its answer is sent.

    Args:
        protocol: string. As in `"tf_serving"`. Defaults to `""`.
        call: string. What is asked for, as in `"predict"`. Defaults to `""`.

    `model` and `version` are those that answer, and stay empty where there are none: what a client
    makes up must not become a label of a metric.
    """

    __slots__ = (
        "call",
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
        self.model = ""
        self.version = ""
        self.request: Request | None = None
        self.request_id = ""
        self.started = time.monotonic()

    @property
    def mention(self) -> str:
        """What a line of the log says behind its words of a request; nothing where it has no id."""
        return f" Request: {self.request_id}." if self.request_id else ""

    @property
    def is_cached(self) -> bool:
        """Whether the answer is one that was kept."""
        return self.request is not None and self.request.is_cached

    @property
    def queue_seconds(self) -> float | None:
        """How long it waited for its batch to leave, or `None` where it did not run."""
        batch = None if self.request is None else self.request.decision
        if self.request is None or batch is None:
            return None
        return max(batch.left - self.request.arrived, 0.0)

    @property
    def model_seconds(self) -> float | None:
        """How long the model took for its last batch, or `None` where it did not run."""
        batch = None if self.request is None else self.request.decision
        return None if batch is None else batch.seconds

    @property
    def batch_rows(self) -> int | None:
        """Rows of requests in its last batch, or `None` where it did not run."""
        batch = None if self.request is None else self.request.decision
        return None if batch is None else batch.rows


current_trace: ContextVar[RequestTrace | None] = ContextVar("current_trace", default=None)
"""The trace of the request that a task answers, where each request has a task of its own."""
