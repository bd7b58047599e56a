import asyncio
import threading
from concurrent.futures import Future

import pytest

from keras_deepseek.inference.loop_delivery import LoopDelivery


def test_a_whole_batch_wakes_the_event_loop_once():
    async def main():
        delivery, loop, wakes = LoopDelivery(), asyncio.get_running_loop(), []
        answers = [Future() for _ in range(5)]
        waiters = [delivery.wait_for(answer) for answer in answers]
        wake = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *args: (wakes.append(1), wake(*args))

        def finish():
            for index, answer in enumerate(answers):
                answer.set_result({"y": index})
            delivery.flush()

        threading.Thread(target=finish).start()
        results = await asyncio.gather(*waiters)
        return results, len(wakes)

    results, wakes = asyncio.run(main())
    assert results == [{"y": index} for index in range(5)]
    assert wakes == 1


def test_an_answer_that_is_there_already_is_delivered():
    async def main():
        answer = Future()
        answer.set_result({"y": 1})
        return await LoopDelivery().wait_for(answer)

    assert asyncio.run(main()) == {"y": 1}


def test_an_error_is_raised_where_it_is_awaited():
    async def main():
        answer = Future()
        answer.set_exception(ArithmeticError("no"))
        await LoopDelivery().wait_for(answer)

    with pytest.raises(ArithmeticError, match="no"):
        asyncio.run(main())


def test_cancelling_the_awaitable_cancels_the_request():
    async def main():
        answer = Future()
        waiter = LoopDelivery().wait_for(answer)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        await asyncio.sleep(0)  # Callbacks come in the loop's next round.
        return answer.cancelled()

    assert asyncio.run(main())


def test_an_answer_that_comes_after_the_cancellation_is_let_go():
    async def main():
        delivery, answer = LoopDelivery(), Future()
        waiter = delivery.wait_for(answer)
        answer.set_running_or_notify_cancel()
        waiter.cancel()
        await asyncio.sleep(0)
        answer.set_result({"y": 1})
        delivery.flush()
        await asyncio.sleep(0)
        return waiter.cancelled()

    assert asyncio.run(main())


def test_a_closed_event_loop_is_passed_over():
    delivery, answer = LoopDelivery(), Future()

    async def main():
        delivery.wait_for(answer)

    asyncio.run(main())
    answer.set_result({"y": 1})
    delivery.flush()
