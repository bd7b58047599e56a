import math

import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference.batching.batch import Request
from keras_deepseek.inference.batching.batch_queue import MAX_SHAPE_QUEUES, BatchQueue
from keras_deepseek.inference.batching.batch_time import BatchTime
from keras_deepseek.inference.batching.batcher import batch_buckets
from keras_deepseek.inference.batching.batching_policy import FixedPolicy
from keras_deepseek.inference.errors import OverloadedError
from tests.oracles.queue_simulation import LIMIT, poisson, seconds_of, simulate
from tests.oracles.queue_simulation import make_queue as simulated_queue


def make_queue(batch_size=None, max_batch_size=4, max_wait=1.0, max_rows=None, **options):
    limit = batch_size or max_batch_size

    def make_policy():
        return FixedPolicy(limit, max_wait if batch_size else 0.0)

    return BatchQueue(
        make_policy,
        buckets=batch_buckets(batch_size or "dynamic", max_batch_size),
        **{"batch_time": BatchTime(), "max_rows": max_rows} | options,
    )


def steady_time():
    """Returns the time of a model that takes a second a batch."""
    time = BatchTime()
    time.add(4, 1.0)
    return time


def request_of(rows, width=2, **options):
    return Request({"x": np.zeros((rows, width), "float32")}, **options)


def taken(batch):
    return [(part.request, part.start, part.stop) for part in batch.slices]


def test_an_empty_queue_has_no_batch_and_nothing_to_look_out_for():
    queue = make_queue()
    assert queue.next_batch(0.0) is None
    assert queue.next_time() == math.inf


def test_dynamic_takes_everything_at_once_and_tells_how_long_it_waited():
    queue = make_queue()
    first, second = request_of(1), request_of(2)
    queue.add(first, 1.0)
    queue.add(second, 2.0)
    batch = queue.next_batch(2.5)
    assert taken(batch) == [(first, 0, 1), (second, 0, 2)]
    assert (batch.reason, batch.queue_age) == ("idle", 1.5)
    assert queue.rows == 0
    assert queue.next_batch(2.5) is None


def test_dynamic_says_full_when_no_more_rows_fit():
    queue = make_queue(max_batch_size=2)
    queue.add(request_of(2), 0.0)
    assert queue.next_batch(0.0).reason == "full"


@pytest.mark.parametrize(
    ("rows", "batch_rows"), [(20, 16), (23, 16), (25, 25), (16, 16), (9, 8), (12, 12)]
)
def test_rows_that_padding_would_make_expensive_wait_for_the_next_batch(rows, batch_rows):
    queue = simulated_queue()
    for _ in range(rows):
        queue.add(request_of(1), 0.0)
    assert queue.next_batch(0.0).rows == batch_rows
    assert queue.rows == rows - batch_rows


def test_neither_a_request_nor_a_deadline_suffers_from_less_padding():
    queue = simulated_queue()
    queue.add(request_of(20), 0.0)
    assert queue.next_batch(0.0).rows == 20
    queue = simulated_queue(wait=1.0)
    for _ in range(19):
        queue.add(request_of(1), 0.0)
    queue.add(request_of(1, deadline=0.02), 0.0)
    batch = queue.next_batch(0.01)
    assert (batch.reason, batch.rows) == ("deadline", 20)


def test_a_request_that_does_not_fit_is_continued_in_the_next_batch():
    queue = make_queue(max_batch_size=4)
    large, small = request_of(9), request_of(1)
    queue.add(large, 0.0)
    queue.add(small, 0.0)
    assert taken(queue.next_batch(0.0)) == [(large, 0, 4)]
    assert taken(queue.next_batch(0.0)) == [(large, 4, 8)]
    assert taken(queue.next_batch(0.0)) == [(large, 8, 9), (small, 0, 1)]
    assert queue.rows == 0


def test_fixed_waits_for_its_rows_or_for_its_time():
    queue = make_queue(batch_size=3, max_wait=1.0)
    queue.add(request_of(2), 10.0)
    assert queue.next_batch(10.9) is None
    assert queue.next_time() == 11.0
    assert queue.next_batch(11.0).reason == "waited"
    queue.add(request_of(2), 20.0)
    queue.add(request_of(2), 20.1)
    batch = queue.next_batch(20.1)
    assert (batch.rows, batch.reason) == (3, "full")


def test_fixed_waits_no_more_when_closing():
    queue = make_queue(batch_size=3)
    queue.add(request_of(1), 0.0)
    queue.is_closing = True
    assert queue.next_batch(0.0).reason == "closing"


def test_shapes_do_not_mix_and_the_oldest_goes_first():
    queue = make_queue()
    narrow, wide, late = request_of(1, width=2), request_of(1, width=3), request_of(1, width=2)
    for now, request in enumerate([wide, narrow, late]):
        queue.add(request, float(now))
    assert taken(queue.next_batch(3.0)) == [(wide, 0, 1)]
    assert taken(queue.next_batch(3.0)) == [(narrow, 0, 1), (late, 0, 1)]


def test_a_full_queue_does_not_wait_behind_an_older_one_that_is_not_due():
    queue = make_queue(batch_size=2)
    narrow, wide = request_of(1, width=2), request_of(2, width=3)
    queue.add(narrow, 0.0)
    queue.add(wide, 0.1)
    assert taken(queue.next_batch(0.1)) == [(wide, 0, 2)]
    assert queue.next_batch(0.1) is None


def test_what_is_forgotten_frees_its_room():
    queue = make_queue(max_rows=3)
    gone, waiting = request_of(2), request_of(1)
    queue.add(gone, 0.0)
    queue.add(waiting, 0.0)
    queue.forget(gone)
    queue.forget(gone)
    queue.add(request_of(2), 0.0)
    assert taken(queue.next_batch(0.0))[0] == (waiting, 0, 1)
    assert queue.rows == 0


def test_the_rest_of_a_request_that_failed_is_not_run():
    queue = make_queue(max_batch_size=2)
    request = request_of(4)
    queue.add(request, 0.0)
    queue.next_batch(0.0).fail(ArithmeticError())
    queue.forget(request)
    assert queue.next_batch(0.0) is None
    assert queue.rows == 0


def test_a_queue_with_a_higher_priority_goes_before_an_older_one():
    queue = make_queue()
    old, urgent = request_of(1, width=2), request_of(1, width=3, priority=1)
    queue.add(old, 0.0)
    queue.add(urgent, 1.0)
    assert taken(queue.next_batch(1.0)) == [(urgent, 0, 1)]


def test_an_answer_that_would_come_after_its_deadline_is_refused_at_once():
    queue = make_queue(batch_time=steady_time())
    queue.add(request_of(4), 0.0)
    queue.next_batch(0.0)  # Until 1.0.
    queue.add(request_of(4), 0.5)  # Until 2.0.
    with pytest.raises(OverloadedError, match=r"2.5 s, and is needed in 2.4 s") as caught:
        queue.add(request_of(1, deadline=2.9), 0.5)
    assert caught.value.retry_after == 3
    queue.add(request_of(1, deadline=3.1), 0.5)


def test_a_queue_that_stands_refuses_long_waits_until_it_was_empty():
    queue = make_queue(batch_time=steady_time())
    assert queue.patience == 4.0
    for _ in range(10):  # A burst is accepted, though its last answer comes after 10 s.
        queue.add(request_of(4), 0.0)
    queue.add(request_of(4), 4.0)
    with pytest.raises(OverloadedError, match=r"12 s, and the queue has not been empty for 4.1 s"):
        queue.add(request_of(1), 4.1)
    queue.add(request_of(1, deadline=20.0), 4.1)  # It says how long it can wait.
    while queue.next_batch(5.0):
        queue.free(5.0)
    for _ in range(10):
        queue.add(request_of(4), 5.0)


def test_a_model_that_hangs_is_not_waited_for_by_more_than_a_batch():
    time = BatchTime()
    time.add(4, 0.01)
    queue = make_queue(batch_time=time)
    queue.add(request_of(4), 0.0)
    queue.next_batch(0.0)  # It never ends.
    for now in range(4):
        queue.add(request_of(1), 1.0 + now)
    with pytest.raises(OverloadedError, match="would take 4 s, and the queue has not been empty"):
        queue.add(request_of(1), 5.0)


def test_a_target_latency_replaces_the_patience_of_a_queue():
    queue = make_queue(batch_time=steady_time(), target_latency=100.0)
    for _ in range(10):
        queue.add(request_of(4), 0.0)
    queue.add(request_of(4), 50.0)


@pytest.mark.parametrize(("load", "least"), [(2.0, 0.98), (4.0, 0.85)])
def test_answers_stay_useful_at_several_times_the_load(load, least):
    seconds, ceiling = 3.0, LIMIT / seconds_of(LIMIT)
    queue = simulated_queue(max_rows=4096)  # It has room for 1.5 s.
    outcome = simulate(queue, poisson(load * ceiling, seconds), seconds=seconds)
    useful = sum(latency < 0.5 for latency in outcome.latencies)
    assert useful > least * seconds * ceiling


def test_a_burst_of_a_thousand_requests_is_answered():
    outcome = simulate(simulated_queue(), [0.0] * 1000)
    assert (outcome.refused, len(outcome.latencies)) == (0, 1000)


def test_nothing_is_refused_for_a_time_that_is_not_known():
    queue = make_queue()
    queue.add(request_of(4), 0.0)
    queue.add(request_of(1, deadline=0.001), 0.0)
    assert queue.rows == 5


def test_two_replicas_answer_in_half_the_time():
    queue = make_queue(batch_time=steady_time(), num_replicas=2)
    for _ in range(4):
        queue.add(request_of(4), 0.0)
    assert queue.predict_wait(4, 0.0) == 2.5


def test_a_target_keeps_batches_small_and_refuses_what_would_be_late():
    time = BatchTime()
    for rows in (1, 2, 4):
        time.add(rows, float(rows))
    queue = make_queue(batch_time=time, target_latency=4.0)
    for _ in range(3):
        queue.add(request_of(1), 0.0)
    assert queue.next_batch(0.0).rows == 2  # With one that runs, two batches fit in the target.
    queue.add(request_of(1), 0.0)
    with pytest.raises(OverloadedError, match="is needed in 4 s"):
        queue.add(request_of(1), 0.0)


def test_a_model_too_slow_for_the_target_still_answers_when_it_is_free():
    queue = make_queue(batch_time=steady_time(), target_latency=0.5)
    queue.add(request_of(1), 0.0)
    assert queue.next_batch(0.0).rows == 1
    queue.free(1.0)
    queue.add(request_of(1), 1.0)


def test_shape_queues_are_kept_for_what_they_learned_but_not_without_end():
    queue = make_queue()
    for width in range(3 * MAX_SHAPE_QUEUES):
        queue.add(request_of(1, width=width), 0.0)
        queue.next_batch(0.0)
        queue.free(0.0)
    assert len(queue._shape_queues) == MAX_SHAPE_QUEUES


def test_a_full_queue_refuses_and_counts_requests_without_rows_too():
    queue = make_queue(max_rows=3)
    queue.add(request_of(2), 0.0)
    queue.add(request_of(0), 0.0)
    for rows in (0, 1):
        with pytest.raises(OverloadedError, match="3 rows are waiting and at most 3"):
            queue.add(request_of(rows), 0.0)


def test_a_request_larger_than_the_queue_is_refused_though_nothing_waits():
    queue = make_queue(max_rows=3)
    with pytest.raises(InvalidInputError, match="too large: it has 4 rows, and at most 3 may wait"):
        queue.add(request_of(4), 0.0)
    assert queue.rows == 0
    queue.add(request_of(3), 0.0)
    assert queue.rows == 3


def test_rows_without_elements_are_counted():
    queue = make_queue()
    with pytest.raises(InvalidInputError, match="1099511627776 rows"):
        queue.add(Request({"x": np.empty((2**40, 0), "float32")}), 0.0)


def quick_queue(seconds, **options):
    """Returns a queue before a model that takes some seconds for each batch of 32 rows."""
    time = BatchTime()
    time.add(32, seconds)
    return make_queue(max_batch_size=32, batch_time=time, **options)


def test_bulk_clients_of_a_quick_model_are_all_accepted():
    queue = quick_queue(32e-6)
    for _ in range(64):
        queue.add(request_of(1000), 0.0)
    queue.add(request_of(1), 0.0)
    assert queue.rows == 64_001


def test_bulk_clients_wait_for_seconds_and_others_for_the_patience():
    queue = quick_queue(0.032)  # A millisecond a row.
    queue.add(request_of(1000), 0.0)
    with pytest.raises(OverloadedError, match=r"would take 1.06 s, where 0.2 s are allowed"):
        queue.add(request_of(32), 0.0)
    queue.add(request_of(3900), 0.0)
    with pytest.raises(OverloadedError, match=r"take 5.02 s, where 5 s are allowed") as caught:
        queue.add(request_of(100), 0.0)
    assert caught.value.retry_after == 6
    queue.add(request_of(100, deadline=6.0), 0.0)


def test_a_request_that_no_retry_would_help_is_too_large():
    queue = quick_queue(0.032)
    with pytest.raises(InvalidInputError, match=r"6000 rows, and the answer would take 6.02 s"):
        queue.add(request_of(6000), 0.0)
    with pytest.raises(InvalidInputError, match="at most 65536 may wait"):
        make_queue(row_bytes=16).add(request_of(2**16 + 1, width=0), 0.0)


def test_rows_beyond_the_sure_ones_wait_while_their_bytes_and_answers_fit():
    large = {"x": np.broadcast_to(np.float32(0), (1000, 60_000))}  # 240 MB that take no memory.
    queue = quick_queue(32e-6)
    queue.add(Request(large), 0.0)
    queue.add(request_of(1000), 0.0)
    with pytest.raises(OverloadedError, match="480008000 bytes, where 268435456 are allowed"):
        queue.add(Request(large), 0.0)
    queue.next_batch(0.0)
    queue.clear()
    queue.add(Request({"x": np.array([b"word" * 100_000] * 600, "object")}), 0.0)
    with pytest.raises(OverloadedError, match="480009600 bytes"):
        queue.add(Request({"x": np.array([b"word" * 100_000] * 600, "object")}), 0.0)
    queue = quick_queue(32e-6, row_bytes=200_000)
    queue.add(request_of(1024), 0.0)
    with pytest.raises(OverloadedError, match="409600000 bytes"):
        queue.add(request_of(1024), 0.0)


def test_until_a_batch_was_measured_no_more_than_the_sure_rows_wait():
    queue = make_queue()
    queue.add(request_of(1024), 0.0)
    with pytest.raises(OverloadedError, match="at most 1024 may until a batch was measured"):
        queue.add(request_of(1), 0.0)


def test_clear_hands_out_what_waits():
    queue = make_queue()
    request = request_of(1)
    queue.add(request, 0.0)
    assert queue.clear() == [request]
    assert queue.rows == 0
    assert queue.next_batch(0.0) is None
