"""The errors of serving. A client should retry later on some of them, here or at another server.

`http.answers` and `grpc.answers` turn them into statuses for clients.
"""

import math

from keras_deepseek.errors import InvalidInputError, KerasDeepSeekError


class OverloadedError(KerasDeepSeekError):
    """The error for a request that was refused: the queue is too long to answer it in time.

    Args:
        reason: string. Why, without a full stop.
        retry_after: float. Seconds after which a retry makes sense. They are rounded up to at least
            one whole second. Defaults to `1.0`.
    """

    def __init__(self, reason: str, retry_after: float = 1.0) -> None:
        self.retry_after = max(math.ceil(retry_after), 1)
        super().__init__(f"{reason}. Try again in {self.retry_after} s.")


class DeadlineExceededError(KerasDeepSeekError):
    """A request whose deadline passed before its answer was ready."""


class ClosedError(KerasDeepSeekError):
    """A request to an engine that is not started, is closing or is closed."""


class ModelNotFoundError(KerasDeepSeekError, KeyError):
    """A request for a model, a version or a label that is not served here."""

    __str__ = Exception.__str__  # `KeyError` would put the message in quotes.


class NotPermittedError(KerasDeepSeekError):
    """A call that this server does not allow, or not with the token that the client sent."""


class RequestCancelledError(KerasDeepSeekError):
    """A request for a text that was cancelled before its answer was whole."""


class TextFailedError(KerasDeepSeekError):
    """A request for a text whose answer the model could not write. The log has the reason."""


class ReplicaError(KerasDeepSeekError):
    """The error of a batch whose isolated model failed, crashed or hung."""


class SignatureChangedError(KerasDeepSeekError):
    """The error of a version that waits: requests of its model's clients would be wrong for it."""


class LoadFailedError(KerasDeepSeekError):
    """The error of a model that a client asked to load and that failed to load.

    The log has the reason.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"The model {name!r} could not be loaded; see the server's log.")


STATUSES: tuple[tuple[type[KerasDeepSeekError], int, str], ...] = (
    (InvalidInputError, 400, "INVALID_ARGUMENT"),
    (NotPermittedError, 403, "PERMISSION_DENIED"),
    (ModelNotFoundError, 404, "NOT_FOUND"),
    (OverloadedError, 429, "RESOURCE_EXHAUSTED"),
    (LoadFailedError, 500, "INTERNAL"),
    (TextFailedError, 500, "INTERNAL"),
    (ClosedError, 503, "UNAVAILABLE"),
    (DeadlineExceededError, 504, "DEADLINE_EXCEEDED"),
)
"""The errors that clients may read, and their statuses over HTTP and gRPC. Others are logged."""

NOT_OF_MODEL = (InvalidInputError, OverloadedError, ClosedError, DeadlineExceededError)
"""The errors of a request that are no fault of its model, so that clients may read them. A model
raises `InvalidInputError` for inputs that it refuses."""
