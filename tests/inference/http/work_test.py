import asyncio
import threading

import pytest

from keras_deepseek.inference.http.message import HttpResponse
from keras_deepseek.inference.http.work import answer_later


def run(work, respond=lambda: HttpResponse(204)):
    """Returns the answer, and whether the work was done on the loop's own thread."""
    threads = []

    def noted():
        threads.append(threading.current_thread())
        work()

    async def ask():
        pending = answer_later(noted, respond)
        settled = asyncio.get_running_loop().create_future()
        pending.start(settled.set_result)
        return pending.make_response(await settled)

    return asyncio.run(ask()), threads[0] is threading.current_thread()


def test_the_work_is_done_on_another_thread_and_then_answered():
    answer, is_on_loop = run(lambda: None)
    assert (answer.status, is_on_loop) == (204, False)


def test_what_the_work_raises_is_raised_in_place_of_the_answer():
    def fail():
        raise LookupError("no such model")

    def respond():
        raise AssertionError("It is not asked for.")

    with pytest.raises(LookupError, match="no such model"):
        run(fail, respond)


def test_a_client_that_hangs_up_does_not_stop_it():
    may_end, ended = threading.Event(), threading.Event()

    def work():
        assert may_end.wait(60)
        ended.set()
        raise LookupError("Nobody is left to be told.")

    async def ask():
        settled = asyncio.get_running_loop().create_future()
        answer_later(work, HttpResponse).start(settled.set_result)()
        may_end.set()
        await settled

    asyncio.run(ask())
    assert ended.is_set()
