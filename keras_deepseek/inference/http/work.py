"""HTTP responses that wait for work on a thread, such as loading a model.

Meanwhile the event loop answers other requests.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from keras_deepseek.inference.http.message import HttpResponse, Pending

_Done = asyncio.Future[None]


def answer_later(work: Callable[[], None], respond: Callable[[], HttpResponse]) -> Pending:
    """Returns a response that is ready when `work` has returned on a thread.

    `work` goes on if the client hangs up. `respond` makes the answer on the event loop.
    """

    def start(settle: Callable[[Any], None]) -> Callable[[], None]:
        def finish(done: _Done) -> None:
            if not done.cancelled():
                done.exception()  # Without this, asyncio logs it if the client has hung up.
            settle(done)

        asyncio.get_running_loop().run_in_executor(None, work).add_done_callback(finish)
        return lambda: None

    def make_response(done: _Done) -> HttpResponse:
        done.result()
        return respond()

    return Pending(start, make_response)
