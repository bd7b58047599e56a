"""The errors of serving: what a client should try again later, here or at another server."""

import math

from keras_deepseek.artifacts.errors import KerasDeepSeekError


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
