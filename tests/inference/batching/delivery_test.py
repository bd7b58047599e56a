import asyncio
import threading

import numpy as np
import pytest

from keras_deepseek.inference.batching.batch import Request
from keras_deepseek.inference.batching.delivery import LoopDelivery, open_future, open_waiter


def open_request(delivery):
    waiter, settle = open_waiter()
    return waiter, Request({"x": np.zeros((1, 1))}, delivery.to_loop(settle))


def test_a_whole_batch_wakes_the_event_loop_once():
    async def main():
        delivery, loop, wakes = LoopDelivery(), asyncio.get_running_loop(), []
        pairs = [open_request(delivery) for _ in range(5)]
        wake = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *args: (wakes.append(1), wake(*args))

        def finish():
            for index, (_, request) in enumerate(pairs):
                request.answer(0, {"y": index}, 1)
            delivery.flush()

        threading.Thread(target=finish).start()
        results = await asyncio.gather(*(waiter for waiter, _ in pairs))
        return results, len(wakes)

    results, wakes = asyncio.run(main())
    assert results == [{"y": index} for index in range(5)]
    assert wakes == 1


def test_an_error_is_raised_where_it_is_awaited():
    async def main():
        delivery = LoopDelivery()
        waiter, request = open_request(delivery)
        request.fail(ArithmeticError("no"))
        delivery.flush()
        await waiter

    with pytest.raises(ArithmeticError, match="no"):
        asyncio.run(main())


def test_an_answer_that_comes_after_the_cancellation_is_let_go():
    async def main():
        delivery = LoopDelivery()
        waiter, request = open_request(delivery)
        waiter.cancel()
        request.answer(0, {"y": 1}, 1)
        delivery.flush()
        await asyncio.sleep(0)
        return waiter.cancelled()

    assert asyncio.run(main())


def test_a_closed_event_loop_is_passed_over():
    delivery, opened = LoopDelivery(), []

    async def main():
        opened.append(open_request(delivery))

    asyncio.run(main())
    opened[0][1].answer(0, {"y": 1}, 1)
    delivery.flush()
    assert delivery._finished == {}


def test_what_fails_to_take_its_answer_keeps_nobody_from_theirs(caplog):
    def fail(request):
        raise ArithmeticError("no")

    async def main():
        delivery = LoopDelivery()
        Request({"x": np.zeros((1, 1))}, delivery.to_loop(fail)).answer(0, {"y": 1}, 1)
        waiter, request = open_request(delivery)
        request.answer(0, {"y": 2}, 1)
        delivery.flush()
        return await waiter

    assert asyncio.run(main()) == {"y": 2}
    assert "could not be handed over" in caplog.text


def test_outputs_and_errors_reach_the_future():
    answer, deliver = open_future()
    Request({"x": np.zeros((1, 1))}, deliver).answer(0, {"y": 1}, 1)
    assert answer.result(timeout=0) == {"y": 1}
    answer, deliver = open_future()
    Request({"x": np.zeros((1, 1))}, deliver).fail(ArithmeticError("no"))
    with pytest.raises(ArithmeticError, match="no"):
        answer.result(timeout=0)


def test_what_comes_after_the_cancellation_is_let_go():
    answer, deliver = open_future()
    answer.cancel()
    Request({"x": np.zeros((1, 1))}, deliver).answer(0, {"y": 1}, 1)
    assert answer.cancelled()
