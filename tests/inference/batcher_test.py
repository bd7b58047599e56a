import threading

import pytest

from keras_deepseek.inference.batcher import NUM_DECISIONS, Batcher, batch_buckets
from keras_deepseek.inference.errors import ClosedError, OverloadedError


def values(future):
    return future.result(timeout=60)["y"][:, 0].tolist()


def test_buckets_are_powers_of_two_and_the_largest_size():
    assert batch_buckets("dynamic", 1) == (1,)
    assert batch_buckets("dynamic", 8) == (1, 2, 4, 8)
    assert batch_buckets("dynamic", 24) == (1, 2, 4, 8, 16, 24)
    assert batch_buckets(6, 24) == (6,)


def test_what_waits_is_answered_in_padded_batches_without_a_thread_too(doubler, rows):
    batcher = Batcher(doubler.run, max_batch_size=4)
    futures = [batcher.submit(rows(*range(count))) for count in (1, 2, 5)]
    batcher.close()
    assert [values(future) for future in futures] == [[0], [0, 2], [0, 2, 4, 6, 8]]
    assert doubler.sizes == [4, 4]


def test_a_smaller_batch_is_padded_to_its_bucket(doubler, rows):
    batcher = Batcher(doubler.run, max_batch_size=8)
    future = batcher.submit(rows(1, 2, 3))
    batcher.close()
    assert values(future) == [2, 4, 6]
    assert doubler.rows_seen == [1, 2, 3, 3]
    statistics = batcher.statistics()
    assert (statistics.batches, statistics.rows, statistics.padded_rows) == (1, 3, 1)


def test_no_rows_are_answered_with_no_rows(doubler, rows):
    batcher = Batcher(doubler.run)
    future = batcher.submit(rows())
    batcher.close()
    assert future.result()["y"].shape == (0, 2)


def test_only_the_request_that_fails_alone_gets_the_error(doubler, rows):
    batcher = Batcher(doubler.run)
    good, bad, other = (batcher.submit(rows(value)) for value in (1, -1, 2))
    batcher.close()
    assert (values(good), values(other)) == ([2], [4])
    with pytest.raises(ArithmeticError, match="a row starts with -1"):
        bad.result()
    reasons = [decision.reason for decision in batcher.statistics().decisions]
    assert reasons == ["idle", "retried", "retried", "retried"]


def test_a_request_that_fails_alone_is_not_run_a_second_time(doubler, rows):
    batcher = Batcher(doubler.run)
    future = batcher.submit(rows(-1))
    batcher.close()
    assert isinstance(future.exception(), ArithmeticError)
    assert doubler.sizes == [1]


def test_even_an_exit_inside_the_model_leaves_the_batcher_running(rows):
    def run(inputs):
        if inputs["x"][0, 0] == 0:
            raise SystemExit
        return {"y": inputs["x"]}

    batcher = Batcher(run)
    batcher.start()
    with pytest.raises(SystemExit):
        batcher.submit(rows(0)).result(timeout=60)
    assert values(batcher.submit(rows(5))) == [5]
    batcher.close()


def test_a_cancelled_request_is_not_run(doubler, rows):
    batcher = Batcher(doubler.run)
    gone, kept = batcher.submit(rows(1)), batcher.submit(rows(2))
    assert gone.cancel()
    batcher.close()
    assert values(kept) == [4]
    assert doubler.rows_seen == [2]


def test_requests_gather_while_the_model_is_busy(doubler, rows):
    batcher = Batcher(doubler.run, max_batch_size=4)
    doubler.hold()
    batcher.start()
    futures = [batcher.submit(rows(0))]
    assert doubler.entered.wait(60)
    futures += [batcher.submit(rows(value)) for value in (1, 2, 3)]
    doubler.release()
    assert [values(future) for future in futures] == [[0], [2], [4], [6]]
    batcher.close()
    assert doubler.sizes == [1, 4]


def test_a_fixed_batch_leaves_when_it_is_full(doubler, rows):
    batcher = Batcher(doubler.run, batch_size=3, max_wait=3600.0)
    batcher.start()
    futures = [batcher.submit(rows(value)) for value in (1, 2, 3)]
    assert [values(future) for future in futures] == [[2], [4], [6]]
    batcher.close()
    assert [decision.reason for decision in batcher.statistics().decisions] == ["full"]


def test_a_fixed_batch_leaves_padded_when_its_time_has_come(doubler, rows):
    times = iter([100.0, 100.5, 101.0, 102.0])
    batcher = Batcher(doubler.run, batch_size=3, max_wait=1.0, clock=lambda: next(times, 103.0))
    future = batcher.submit(rows(1))  # At 100.0; the thread looks at 100.5, then at 101.0.
    wait = batcher._condition.wait
    batcher._condition.wait = lambda timeout: None if timeout else wait()
    batcher.start()
    assert values(future) == [2]
    batcher.close()
    (decision,) = batcher.statistics().decisions
    assert (decision.reason, decision.rows, decision.padded_rows) == ("waited", 1, 2)
    assert decision.queue_age == 1.0


def test_a_full_queue_refuses_and_what_was_accepted_is_answered(doubler, rows):
    batcher = Batcher(doubler.run, max_queue_rows=2)
    futures = [batcher.submit(rows(1)), batcher.submit(rows(2))]
    with pytest.raises(OverloadedError):
        batcher.submit(rows(3))
    batcher.close()
    assert [values(future) for future in futures] == [[2], [4]]


def test_closing_finishes_what_was_accepted_and_refuses_the_rest(doubler, rows):
    batcher = Batcher(doubler.run, batch_size=4, max_wait=3600.0)
    batcher.start()
    future = batcher.submit(rows(1))
    batcher.close()
    assert values(future) == [2]
    with pytest.raises(ClosedError, match="closed"):
        batcher.submit(rows(1))


def test_closing_without_draining_says_so_to_those_who_wait(doubler, rows):
    batcher = Batcher(doubler.run, batch_size=4, max_wait=3600.0)
    batcher.start()
    future = batcher.submit(rows(1))
    batcher.close(drain=False)
    with pytest.raises(ClosedError, match="before the request's turn"):
        future.result()
    assert doubler.sizes == []


def test_the_callback_comes_once_a_batch_when_all_of_it_is_answered(doubler, rows):
    finished = []
    batcher = Batcher(doubler.run, after_batch=lambda: finished.append(all_done()))
    futures = [batcher.submit(rows(1)), batcher.submit(rows(2))]

    def all_done():
        return all(future.done() for future in futures)

    batcher.close()
    assert finished == [False, True]  # Once for closing, once for the batch.


def test_only_the_last_decisions_are_kept(doubler, rows):
    batcher = Batcher(doubler.run, max_batch_size=1, max_queue_rows=2 * NUM_DECISIONS)
    for _ in range(NUM_DECISIONS + 5):
        batcher.submit(rows(1))
    batcher.close()
    assert batcher.statistics().batches == NUM_DECISIONS + 5
    assert len(batcher.statistics().decisions) == NUM_DECISIONS


def test_many_threads_get_their_own_answers(doubler, rows):
    batcher = Batcher(doubler.run, max_batch_size=8)
    batcher.start()
    answers = {}

    def ask(start):
        for value in range(start, start + 20):
            answers[value] = values(batcher.submit(rows(value, -2 - value)))

    threads = [threading.Thread(target=ask, args=(100 * index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batcher.close()
    assert answers == {value: [2 * value, -4 - 2 * value] for value in answers}
    assert len(answers) == 16 * 20
    assert batcher.statistics().rows == 16 * 20 * 2
