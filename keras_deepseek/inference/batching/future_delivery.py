"""Delivers an answer to a `concurrent.futures.Future`, for a thread that waits."""

from collections.abc import Callable
from concurrent.futures import Future

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.inference.batching.batch import Request

Answer = Future[dict[str, Array]]


def open_future() -> tuple[Answer, Callable[[Request], None]]:
    """Returns a future, and the function that sets its result from a finished request."""
    answer: Answer = Future()

    def deliver(request: Request) -> None:
        if not answer.set_running_or_notify_cancel():
            return
        if request.error is not None:
            answer.set_exception(request.error)
        else:
            answer.set_result(request.outputs or {})

    return answer, deliver
