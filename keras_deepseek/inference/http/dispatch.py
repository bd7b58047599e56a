"""Responses that a model or other slow work computes, for the handlers of all protocols."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Unpack

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.inference.batching.batch import Request
from keras_deepseek.inference.batching.delivery import Settle
from keras_deepseek.inference.errors import ModelNotFoundError
from keras_deepseek.inference.http.answers import outputs_of
from keras_deepseek.inference.http.message import HttpError, HttpRequest, HttpResponse, Pending
from keras_deepseek.inference.request_options import RequestOptions

if TYPE_CHECKING:
    from keras_deepseek.inference.http.http_server import HttpServer

Inputs = dict[str, Array]


def dispatch(
    server: "HttpServer",
    request: HttpRequest,
    name: str,
    bind: Callable[[Signature], Inputs],
    encode: Callable[[Inputs], HttpResponse],
    *,
    not_found: Callable[[ModelNotFoundError], HttpError] | None = None,
    **options: Unpack[RequestOptions],
) -> Pending:
    """Queues a request for the model `name`, and answers it when the model has run.

    Both functions are called on the event loop: `bind` with the signature of the version that
    answers, for its inputs, and `encode` with the outputs. `not_found` makes another error from a
    `ModelNotFoundError`.
    """
    server.check_ready(name)
    options["model"] = name

    def start(settle: Settle) -> Callable[[], None]:
        try:
            return server.engine.dispatch(bind, settle, request.trace, **options)[0]
        except ModelNotFoundError as error:
            if not_found is None:
                raise
            raise not_found(error) from error

    def respond(finished: Request) -> HttpResponse:
        return encode(outputs_of(name, finished, request.trace))

    return Pending(start, respond)


def answer_later(work: Callable[[], None], respond: Callable[[], HttpResponse]) -> Pending:
    """Returns a response that is ready when `work` has returned on a thread.

    `work` goes on if the client hangs up. `respond` makes the answer on the event loop.
    """

    def start(settle: Callable[[Any], None]) -> Callable[[], None]:
        def finish(done: "asyncio.Future[None]") -> None:
            if not done.cancelled():
                done.exception()  # Without this, asyncio logs it if the client has hung up.
            settle(done)

        asyncio.get_running_loop().run_in_executor(None, work).add_done_callback(finish)
        return lambda: None

    def make_response(done: "asyncio.Future[None]") -> HttpResponse:
        done.result()
        return respond()

    return Pending(start, make_response)
