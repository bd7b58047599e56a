"""The errors of serving: what a client should try again later, here or at another server.

`http.answers` and `grpc.answers` tell clients of them.
"""

import math

from keras_deepseek.errors import InvalidInputError, KerasDeepSeekError


class OverloadedError(KerasDeepSeekError):
    """A request that was refused because too many wait already for it to be answered in time.

    Args:
        reason: string. Why, without a full stop.
        retry_after: float. Seconds after which another try is sensible; they are rounded up to at
            least one whole second. Defaults to `1.0`.
    """

    def __init__(self, reason: str, retry_after: float = 1.0) -> None:
        self.retry_after = max(math.ceil(retry_after), 1)
        super().__init__(f"{reason}. Try again in {self.retry_after} s.")


class DeadlineExceededError(KerasDeepSeekError):
    """A request whose deadline passed before its answer was there."""


class ClosedError(KerasDeepSeekError):
    """A request to an engine that is not started, closing or closed."""


class ModelNotFoundError(KerasDeepSeekError):
    """A request for a model, a version or a label that is not served here."""


class ReplicaError(KerasDeepSeekError):
    """A batch whose model failed, crashed or hung in a process of its own."""


class LoadFailedError(KerasDeepSeekError):
    """A model that a client asked for, and that could not be loaded.

    Args:
        name: string. The model. Why stands in the log alone.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"The model {name!r} could not be loaded; see the server's log.")


STATUSES: tuple[tuple[type[KerasDeepSeekError], int, str], ...] = (
    (InvalidInputError, 400, "INVALID_ARGUMENT"),
    (ModelNotFoundError, 404, "NOT_FOUND"),
    (OverloadedError, 429, "RESOURCE_EXHAUSTED"),
    (LoadFailedError, 500, "INTERNAL"),
    (ClosedError, 503, "UNAVAILABLE"),
    (DeadlineExceededError, 504, "DEADLINE_EXCEEDED"),
)
"""What clients may read of each, and its status over HTTP and over gRPC. Any other is logged."""

OF_WAITING = (OverloadedError, ClosedError, DeadlineExceededError)
"""What may become of a request that waits, without any fault of its model."""
