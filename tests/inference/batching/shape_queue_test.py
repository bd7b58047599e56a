import math

import numpy as np
import pytest

from keras_deepseek.inference.batching.batch import Request
from keras_deepseek.inference.batching.batch_time import BatchTime
from keras_deepseek.inference.batching.batching_policy import FixedPolicy
from keras_deepseek.inference.batching.shape_queue import ShapeQueue


def make_queue(rows=4, wait=1.0, **options):
    time = BatchTime()
    time.add(4, 0.1)
    return ShapeQueue(FixedPolicy(rows, wait), time, **options)


def request_of(rows, arrived=0.0, **options):
    request = Request({"x": np.zeros((rows, 2), "float32")}, **options)
    request.arrived = arrived
    return request


def taken(slices):
    return [(part.request, part.start, part.stop) for part in slices]


def test_an_empty_queue_has_no_reason_to_leave():
    queue = make_queue()
    assert queue.reason_to_leave(4, 0.0, is_closing=True) is None
    assert queue.time_due() == math.inf


def test_higher_priorities_go_first_and_equal_ones_in_the_order_of_arrival():
    queue = make_queue()
    low, high, later = request_of(1), request_of(1, priority=2), request_of(1, priority=2)
    for request in (low, high, later):
        queue.add(request)
    assert [part.request for part in queue.take(2)] == [high, later]
    assert [part.request for part in queue.take(2)] == [low]
    assert queue.rows == 0


def test_a_request_is_continued_where_it_was_left():
    queue = make_queue()
    request = request_of(5)
    queue.add(request)
    assert taken(queue.take(4)) == [(request, 0, 4)]
    assert queue.rows == 1
    assert taken(queue.take(4)) == [(request, 4, 5)]
    assert queue.rows == 0


@pytest.mark.parametrize("index", [0, 1, 2])
def test_what_is_forgotten_takes_no_room_wherever_it_stands(index):
    queue = make_queue()
    requests = [request_of(2, arrived=float(second)) for second in range(3)]
    for request in requests:
        queue.add(request)
    assert queue.forget(requests[index])
    assert not queue.forget(requests[index])
    assert queue.rows == 4
    del requests[index]
    assert queue.oldest == requests[0].arrived
    assert [part.request for part in queue.take(9)] == requests


def test_what_is_left_of_a_request_that_failed_is_forgotten():
    queue = make_queue()
    request = request_of(5)
    queue.add(request)
    queue.take(4)
    queue.forget(request)
    assert (queue.rows, queue.take(4)) == (0, [])


@pytest.mark.parametrize(
    ("rows", "now", "is_closing", "reason"),
    [
        (4, 0.0, False, "full"),
        (3, 0.0, False, None),
        (3, 0.0, True, "closing"),
        (3, 1.0, False, "waited"),
    ],
)
def test_why_rows_leave(rows, now, is_closing, reason):
    queue = make_queue()
    queue.add(request_of(rows))
    assert queue.reason_to_leave(4, now, is_closing) == reason
    assert queue.time_due() == 1.0


def test_rows_that_were_waited_for_have_come():
    queue = make_queue(rows=2)
    queue.add(request_of(2))
    assert queue.reason_to_leave(4, 0.0, is_closing=False) == "gathered"


def test_rows_that_do_not_wait_leave_since_the_model_is_idle():
    queue = make_queue(wait=0.0)
    queue.add(request_of(1))
    assert queue.reason_to_leave(4, 0.0, is_closing=False) == "idle"


def test_a_deadline_ends_the_waiting_while_there_is_time_to_run():
    queue = make_queue()
    late, soon = request_of(1), request_of(1, deadline=0.5)
    queue.add(late)
    queue.add(soon)
    # 0.125 s for the batch of 0.1 s, a tenth of what was given, and 2 ms.
    assert queue.time_due() == pytest.approx(0.323)
    assert queue.reason_to_leave(4, 0.32, is_closing=False) is None
    assert queue.reason_to_leave(4, 0.33, is_closing=False) == "deadline"
    queue.forget(soon)
    assert queue.time_due() == 1.0


def test_so_does_the_latency_that_is_aimed_at():
    queue = make_queue(target_latency=0.3)
    queue.add(request_of(1, arrived=2.0))
    assert queue.time_due() == pytest.approx(2.143)


def test_a_deadline_is_reckoned_with_the_rows_of_padding():
    time = BatchTime()
    for rows in (1, 2, 4):
        time.add(rows, 0.1 * rows)
    queue = ShapeQueue(FixedPolicy(4, 9.0), time, buckets=(1, 2, 4))
    queue.add(request_of(3, arrived=1.0, deadline=3.0))
    assert queue.time_due() == pytest.approx(1.0 + 2.0 - 0.5 - 0.2 - 0.002)


def test_rows_leave_at_half_of_their_time_while_nothing_was_measured():
    queue = ShapeQueue(FixedPolicy(4, 9.0), BatchTime())
    queue.add(request_of(1, arrived=1.0, deadline=2.0))
    assert queue.time_due() == 1.5


def test_a_deadline_too_near_for_the_margin_lets_rows_leave_at_once():
    queue = make_queue()
    queue.add(request_of(1, arrived=1.0, deadline=1.11))
    assert queue.reason_to_leave(4, 1.0, is_closing=False) == "deadline"


def test_clear_hands_out_what_waits():
    queue = make_queue()
    request = request_of(1)
    queue.add(request)
    assert queue.clear() == [request]
    assert (queue.rows, queue.take(4)) == (0, [])
