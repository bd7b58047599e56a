"""The errors of serving: what a client should try again later, here or at another server."""

from keras_deepseek.artifacts.errors import KerasDeepSeekError


class OverloadedError(KerasDeepSeekError):
    """A request that was refused because too many rows were waiting already.

    Args:
        waiting: integer. Rows that were waiting.
        limit: integer. Rows that may wait.
        retry_after: integer. Seconds after which another try is sensible. Defaults to `1`.
    """

    def __init__(self, waiting: int, limit: int, retry_after: int = 1) -> None:
        super().__init__(
            f"The queue is full: {waiting} rows are waiting and at most {limit} may. "
            f"Try again in {retry_after} s, send less at a time, or raise `max_queue_rows`."
        )
        self.retry_after = retry_after


class ClosedError(KerasDeepSeekError):
    """A request to an engine that is not started, closing or closed."""
