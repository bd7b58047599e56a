import numpy as np

from keras_deepseek.inference.batching.batch import Request
from keras_deepseek.inference.batching.delivery import ClientOrder


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


def test_what_was_withdrawn_is_passed_over():
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
