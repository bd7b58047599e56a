import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.inference.batch import Request
from keras_deepseek.inference.batch_queue import BatchQueue
from keras_deepseek.inference.errors import OverloadedError


def make_queue(batch_size=None, max_batch_size=4, max_wait=1.0, max_rows=100):
    return BatchQueue(
        batch_size=batch_size, max_batch_size=max_batch_size, max_wait=max_wait, max_rows=max_rows
    )


def request_of(rows, width=2):
    return Request({"x": np.zeros((rows, width), "float32")})


def taken(batch):
    return [(part.request, part.start, part.stop) for part in batch.slices]


def test_an_empty_queue_has_no_batch_and_nothing_to_look_out_for():
    queue = make_queue()
    assert queue.next_batch(0.0) is None
    assert queue.next_time() is None


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


def test_a_full_lane_does_not_wait_behind_an_older_one_that_is_not_due():
    queue = make_queue(batch_size=2)
    narrow, wide = request_of(1, width=2), request_of(2, width=3)
    queue.add(narrow, 0.0)
    queue.add(wide, 0.1)
    assert taken(queue.next_batch(0.1)) == [(wide, 0, 2)]
    assert queue.next_batch(0.1) is None


def test_a_cancelled_request_is_dropped_and_frees_its_room():
    queue = make_queue(max_rows=3)
    gone, kept = request_of(2), request_of(1)
    queue.add(gone, 0.0)
    queue.add(kept, 0.0)
    gone.future.cancel()
    queue.add(request_of(2), 0.0)
    assert taken(queue.next_batch(0.0))[0] == (kept, 0, 1)
    assert queue.rows == 0


def test_a_request_that_is_cancelled_at_the_last_moment_is_skipped():
    queue = make_queue()
    gone = request_of(1)
    queue.add(gone, 0.0)
    gone.future.done = lambda: False  # So it looked a moment before it was cancelled.
    gone.future.cancel()
    assert queue.next_batch(0.0) is None
    assert queue.rows == 0


def test_what_was_taken_can_not_be_cancelled_any_more():
    queue = make_queue()
    request = request_of(1)
    queue.add(request, 0.0)
    queue.next_batch(0.0)
    assert not request.future.cancel()


def test_the_rest_of_a_request_that_failed_is_not_run():
    queue = make_queue(max_batch_size=2)
    request = request_of(4)
    queue.add(request, 0.0)
    queue.next_batch(0.0).fail(ArithmeticError())
    assert queue.next_batch(0.0) is None
    assert queue.rows == 0


def test_a_full_queue_refuses_and_counts_requests_without_rows_too():
    queue = make_queue(max_rows=3)
    queue.add(request_of(2), 0.0)
    queue.add(request_of(0), 0.0)
    for rows in (0, 1):
        with pytest.raises(OverloadedError, match="3 rows are waiting and at most 3"):
            queue.add(request_of(rows), 0.0)


def test_a_request_larger_than_the_queue_is_accepted_while_nothing_waits():
    queue = make_queue(max_rows=3)
    queue.add(request_of(10), 0.0)
    assert queue.rows == 10


def test_clear_hands_out_what_waits():
    queue = make_queue()
    request = request_of(1)
    queue.add(request, 0.0)
    assert queue.clear() == [request]
    assert queue.rows == 0
    assert queue.next_batch(0.0) is None


actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 9), st.sampled_from([2, 3])),
        st.tuples(st.just("run"), st.floats(0.0, 2.0), st.just(0)),
        st.tuples(st.just("cancel"), st.integers(0, 30), st.just(0)),
    ),
    max_size=40,
)


@given(actions=actions, batch_size=st.sampled_from([None, 1, 3]), limit=st.integers(3, 5))
def test_in_any_schedule_each_row_is_answered_once_and_in_order(actions, batch_size, limit):
    queue = make_queue(batch_size=batch_size, max_batch_size=limit, max_rows=20)
    now, requests, next_row = 0.0, [], 0

    def answer(batch):
        assert batch.rows <= (batch_size or limit)
        assert len({part.request.lane for part in batch.slices}) == 1
        batch.distribute(batch.stack(max(batch.rows, 1)), max(batch.rows, 1))

    for kind, value, width in actions:
        if kind == "add":
            x = np.arange(next_row, next_row + value)[:, None].repeat(width, axis=1)
            request = Request({"x": x})
            try:
                queue.add(request, now)
            except OverloadedError:
                assert queue.rows + max(value, 1) > 20
                continue
            requests.append(request)
            next_row += value
        elif kind == "run":
            now += value
            batch = queue.next_batch(now)
            if batch is not None:
                answer(batch)
        elif requests:
            requests[value % len(requests)].future.cancel()
    queue.is_closing = True
    while (batch := queue.next_batch(now)) is not None:
        answer(batch)
    assert queue.rows == 0
    for request in requests:
        assert request.future.done()
        if not request.future.cancelled():
            np.testing.assert_array_equal(request.future.result()["x"], request.inputs["x"])
