import asyncio
import threading

import numpy as np
import pytest

from keras_deepseek.inference.batching.batch import Request
from keras_deepseek.inference.batching.delivery import (
    ClientOrder,
    LoopDelivery,
    open_future,
    open_waiter,
)


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
    assert delivery._calls == {}


def test_an_error_in_one_delivery_keeps_no_other_back(caplog):
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


def test_an_answer_after_the_cancellation_is_dropped():
    answer, deliver = open_future()
    answer.cancel()
    Request({"x": np.zeros((1, 1))}, deliver).answer(0, {"y": 1}, 1)
    assert answer.cancelled()


def add(order, client, delivered):
    request = Request({"x": np.zeros((1, 1))}, lambda _: order.settle(client))
    order.add(client, request, delivered.append)
    return request


def test_an_answer_waits_for_those_before_it():
    order, delivered = ClientOrder(), []
    first, second, third = (add(order, "a", delivered) for _ in range(3))
    third.fail(ArithmeticError())
    second.answer(0, {}, 1)
    assert delivered == []
    first.answer(0, {}, 1)
    assert delivered == [first, second, third]
    assert order._queues == {}


def test_clients_do_not_wait_for_each_other():
    order, delivered = ClientOrder(), []
    add(order, "a", delivered)
    other = add(order, "b", delivered)
    other.answer(0, {}, 1)
    assert delivered == [other]


def test_a_withdrawn_request_is_passed_over():
    order, delivered = ClientOrder(), []
    first, second = add(order, "a", delivered), add(order, "a", delivered)
    second.answer(0, {}, 1)
    first.withdraw()
    order.settle("a")
    assert delivered == [second]


def test_whoever_gets_an_answer_may_ask_again_at_once():
    order, delivered = ClientOrder(), []

    def deliver(request):
        delivered.append(request)
        if len(delivered) < 3:
            again = Request({"x": np.zeros((1, 1))}, lambda _: order.settle("a"))
            order.add("a", again, deliver)
            again.answer(0, {}, 1)

    first = Request({"x": np.zeros((1, 1))}, lambda _: order.settle("a"))
    order.add("a", first, deliver)
    first.answer(0, {}, 1)
    assert len(delivered) == 3
