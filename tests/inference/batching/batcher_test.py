import contextlib
import math
import os
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_deepseek.inference.batching.batch import Request
from keras_deepseek.inference.batching.batch_totals import NUM_DECISIONS
from keras_deepseek.inference.batching.batcher import Batcher, batch_buckets
from keras_deepseek.inference.errors import ClosedError, DeadlineExceededError, OverloadedError
from tests.oracles.manual_batcher import ManualBatcher


class Answer:
    """A request that can be waited for."""

    def __init__(self, inputs, **options):
        self.is_there = threading.Event()
        self.request = Request(inputs, lambda _: self.is_there.set(), **options)

    def result(self):
        assert self.is_there.wait(60)
        if self.request.error is not None:
            raise self.request.error
        return self.request.outputs


def submit(batcher, inputs, **options):
    answer = Answer(inputs, **options)
    batcher.submit(answer.request)
    return answer


def values(answer):
    return answer.result()["y"][:, 0].tolist()


def test_buckets_are_powers_of_two_and_the_largest_size():
    assert batch_buckets("dynamic", 1) == (1,)
    assert batch_buckets("dynamic", 8) == (1, 2, 4, 8)
    assert batch_buckets("dynamic", 24) == (1, 2, 4, 8, 16, 24)
    assert batch_buckets(6, 24) == (6,)


def test_what_waits_is_answered_in_padded_batches_without_a_thread_too(doubler, rows):
    batcher = Batcher([doubler.run], max_batch_size=4)
    futures = [submit(batcher, rows(*range(count))) for count in (1, 2, 5)]
    batcher.close()
    assert [values(future) for future in futures] == [[0], [0, 2], [0, 2, 4, 6, 8]]
    assert doubler.sizes == [4, 4]


def test_a_smaller_batch_is_padded_to_its_bucket(doubler, rows):
    batcher = Batcher([doubler.run], max_batch_size=8)
    future = submit(batcher, rows(1, 2, 3))
    batcher.close()
    assert values(future) == [2, 4, 6]
    assert doubler.rows_seen == [1, 2, 3, 3]
    statistics = batcher.statistics()
    assert (statistics.batches, statistics.rows, statistics.padded_rows) == (1, 3, 1)


def test_no_rows_are_answered_with_no_rows(doubler, rows):
    batcher = Batcher([doubler.run])
    future = submit(batcher, rows())
    batcher.close()
    assert future.result()["y"].shape == (0, 2)


def test_only_the_request_that_fails_alone_gets_the_error(doubler, rows):
    batcher = Batcher([doubler.run])
    good, bad, other = (submit(batcher, rows(value)) for value in (1, -1, 2))
    batcher.close()
    assert (values(good), values(other)) == ([2], [4])
    with pytest.raises(ArithmeticError, match="a row starts with -1"):
        bad.result()
    reasons = [decision.reason for decision in batcher.statistics().decisions]
    assert reasons == ["closing", "retried", "retried", "retried"]


def test_a_request_that_fails_alone_is_not_run_a_second_time(doubler, rows):
    batcher = Batcher([doubler.run])
    future = submit(batcher, rows(-1))
    batcher.close()
    assert isinstance(future.request.error, ArithmeticError)
    assert doubler.sizes == [1]


def test_even_an_exit_inside_the_model_leaves_the_batcher_running(rows):
    def run(inputs):
        if inputs["x"][0, 0] == 0:
            raise SystemExit
        return {"y": inputs["x"]}

    batcher = Batcher([run])
    batcher.start()
    with pytest.raises(SystemExit):
        submit(batcher, rows(0)).result()
    assert values(submit(batcher, rows(5))) == [5]
    batcher.close()


def test_a_cancelled_request_is_not_run(doubler, rows):
    batcher = Batcher([doubler.run])
    gone, waiting = submit(batcher, rows(1)), submit(batcher, rows(2))
    assert batcher.cancel(gone.request)
    assert not batcher.cancel(gone.request)
    batcher.close()
    assert values(waiting) == [4]
    assert doubler.rows_seen == [2]


def test_requests_gather_while_the_model_is_busy(doubler, rows):
    batcher = Batcher([doubler.run], max_batch_size=4)
    doubler.hold()
    batcher.start()
    futures = [submit(batcher, rows(0))]
    assert doubler.entered.wait(60)
    futures += [submit(batcher, rows(value)) for value in (1, 2, 3)]
    doubler.release()
    assert [values(future) for future in futures] == [[0], [2], [4], [6]]
    batcher.close()
    assert doubler.sizes == [1, 4]


def test_a_fixed_batch_leaves_when_it_is_full(doubler, rows):
    batcher = Batcher([doubler.run], batch_size=3, max_wait=3600.0)
    batcher.start()
    futures = [submit(batcher, rows(value)) for value in (1, 2, 3)]
    assert [values(future) for future in futures] == [[2], [4], [6]]
    batcher.close()
    assert [decision.reason for decision in batcher.statistics().decisions] == ["full"]


def test_a_fixed_batch_leaves_padded_when_its_time_has_come(doubler, rows):
    now = [100.0]
    batcher = Batcher([doubler.run], batch_size=3, max_wait=1.0, clock=lambda: now[0])
    future = submit(batcher, rows(1))
    wait = batcher._condition.wait

    def let_time_pass(timeout):
        if timeout is None:
            return wait()
        now[0] += timeout
        return True

    batcher._condition.wait = let_time_pass
    batcher.start()
    assert values(future) == [2]
    batcher.close()
    (decision,) = batcher.statistics().decisions
    assert (decision.reason, decision.rows, decision.padded_rows) == ("waited", 1, 2)
    assert decision.queue_age == 1.0


def test_a_full_queue_refuses_and_what_was_accepted_is_answered(doubler, rows):
    batcher = Batcher([doubler.run], max_queue_rows=2)
    futures = [submit(batcher, rows(1)), submit(batcher, rows(2))]
    with pytest.raises(OverloadedError):
        submit(batcher, rows(3))
    batcher.close()
    assert [values(future) for future in futures] == [[2], [4]]


def test_closing_finishes_what_was_accepted_and_refuses_the_rest(doubler, rows):
    batcher = Batcher([doubler.run], batch_size=4, max_wait=3600.0)
    batcher.start()
    future = submit(batcher, rows(1))
    batcher.close()
    assert values(future) == [2]
    with pytest.raises(ClosedError, match="closed"):
        submit(batcher, rows(1))


def test_closing_gives_up_what_does_not_end_in_its_seconds(doubler, rows):
    batcher = Batcher([doubler.run], max_batch_size=2)
    doubler.hold()
    together = [submit(batcher, rows(-1)), submit(batcher, rows(2))]
    batcher.start()
    assert doubler.entered.wait(60)
    waiting = submit(batcher, rows(3))
    assert not batcher.close(seconds=0.0)
    for answer in (*together, waiting):
        with pytest.raises(ClosedError, match="did not end in time"):
            answer.result()
    doubler.release()
    assert batcher.close(seconds=60.0)
    assert doubler.sizes == [2]  # What failed was not tried again, what waited not run.


def test_the_callback_comes_once_a_batch_when_all_of_it_is_answered(doubler, rows):
    finished = []
    batcher = Batcher([doubler.run], after_batch=lambda: finished.append(all_done()))
    futures = [submit(batcher, rows(1)), submit(batcher, rows(2))]

    def all_done():
        return all(future.is_there.is_set() for future in futures)

    batcher.close()
    assert finished == [False, True]  # Once for closing, once for the batch.


def test_only_the_last_decisions_are_kept(doubler, rows):
    batcher = Batcher([doubler.run], max_batch_size=1, max_queue_rows=2 * NUM_DECISIONS)
    for _ in range(NUM_DECISIONS + 5):
        submit(batcher, rows(1))
    batcher.close()
    assert batcher.statistics().batches == NUM_DECISIONS + 5
    assert len(batcher.statistics().decisions) == NUM_DECISIONS


def test_many_threads_get_their_own_answers(doubler, rows):
    batcher = Batcher([doubler.run], max_batch_size=8)
    batcher.start()
    answers = {}

    def ask(start):
        for value in range(start, start + 20):
            answers[value] = values(submit(batcher, rows(value, -2 - value)))

    threads = [threading.Thread(target=ask, args=(100 * index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batcher.close()
    assert answers == {value: [2 * value, -4 - 2 * value] for value in answers}
    assert len(answers) == 16 * 20
    assert batcher.statistics().rows == 16 * 20 * 2


def test_each_replica_runs_a_batch_at_the_same_time(rows):
    both = threading.Barrier(2)

    def run(inputs):
        both.wait(60)  # Would fail if one waited for the other.
        return {"y": inputs["x"]}

    batcher = Batcher([run, run], max_batch_size=1)
    batcher.start()
    answers = [submit(batcher, rows(value)) for value in range(6)]
    assert [values(answer) for answer in answers] == [[value] for value in range(6)]
    batcher.close()


def test_a_batch_is_formed_when_its_turn_has_come(doubler, rows):
    turn = threading.Semaphore(0)
    turn_requested = threading.Event()

    @contextlib.contextmanager
    def take_turn():
        turn_requested.set()
        assert turn.acquire(timeout=60)
        yield

    batcher = Batcher([doubler.run], take_turn=take_turn)
    batcher.start()
    answers = [submit(batcher, rows(1))]
    assert turn_requested.wait(60)
    answers.append(submit(batcher, rows(2)))  # It came while the first waited for the turn.
    turn.release()
    assert [values(answer) for answer in answers] == [[2], [4]]
    batcher.close()
    assert doubler.sizes == [2]


def test_what_is_late_is_not_run_and_told_so(doubler, rows):
    now = [0.0]
    batcher = Batcher([doubler.run], clock=lambda: now[0])
    late = submit(batcher, rows(1), deadline=1.0)
    punctual = submit(batcher, rows(2), deadline=3.0)
    now[0] = 2.0
    batcher.close()
    with pytest.raises(DeadlineExceededError, match="deadline passed"):
        late.result()
    assert values(punctual) == [4]
    assert doubler.rows_seen == [2]


def test_an_answer_that_is_there_after_its_deadline_is_an_error(rows):
    now = [0.0]

    def run(inputs):
        now[0] += 5.0
        return {"y": inputs["x"]}

    batcher = Batcher([run], clock=lambda: now[0])
    late, punctual = submit(batcher, rows(1), deadline=4.0), submit(batcher, rows(2), deadline=6.0)
    batcher.close()
    with pytest.raises(DeadlineExceededError):
        late.result()
    assert values(punctual) == [2]


def test_a_deadline_passes_while_every_replica_is_busy(doubler, rows):
    batcher = Batcher([doubler.run])
    doubler.hold()
    batcher.start()
    running = submit(batcher, rows(1))
    assert doubler.entered.wait(60)
    waiting = submit(batcher, rows(2), deadline=time.monotonic() + 0.02)
    with pytest.raises(DeadlineExceededError):
        waiting.result()
    doubler.release()
    assert values(running) == [2]
    batcher.close()
    assert doubler.rows_seen == [1]


def test_a_cancelled_request_that_runs_is_not_answered(doubler, rows):
    batcher = Batcher([doubler.run])
    doubler.hold()
    batcher.start()
    answer = submit(batcher, rows(1))
    assert doubler.entered.wait(60)
    assert batcher.cancel(answer.request)
    doubler.release()
    batcher.close()
    assert not answer.is_there.is_set()


def test_statistics_tell_what_the_model_takes(rows):
    now = [0.0]

    def run(inputs):
        now[0] += 0.5
        return {"y": inputs["x"]}

    batcher = Batcher([run], clock=lambda: now[0])
    submit(batcher, rows(1))
    assert batcher.statistics().waiting_rows == 1
    batcher.close()
    statistics = batcher.statistics()
    assert statistics.busy_seconds == statistics.overhead == 0.5
    assert statistics.decisions[0].seconds == 0.5
    assert statistics.waiting_rows == 0


def test_a_batch_that_fails_tells_nothing_of_what_the_model_takes(rows):
    now = [0.0]

    def run(inputs):
        now[0] += 60.0 if -1 in inputs["x"] else 0.5
        if -1 in inputs["x"]:
            raise ArithmeticError
        return {"y": inputs["x"]}

    batcher = Batcher([run], clock=lambda: now[0])
    for value in (-1, 1, 2):
        submit(batcher, rows(value))
    batcher.close()
    statistics = batcher.statistics()
    assert [decision.seconds for decision in statistics.decisions] == [60.0, 60.0, 0.5, 0.5]
    assert (statistics.overhead, statistics.per_row) == (0.5, 0.0)
    assert batcher.batch_time.predict(4) == 0.5


def actions_of(data):
    """Returns actions of four bytes each: to draw them by name would take most of the time."""
    return [action_of(*four) for four in zip(*[iter(data)] * 4, strict=False)]


def action_of(kind, first, second, third):
    seconds = (256 * first + second) / 2**15
    match kind % 8:
        case 0 | 1 | 2:
            request = {
                "rows": first % 10,
                "width": 2 + first // 10 % 2,
                "timeout": (math.inf, 0.5, 2.0, 5.0)[second % 4],
                "priority": second // 4 % 3,
                "client": (None, "a", "b")[third % 3],
                "fails": third // 3 % 4 == 1,
            }
            return "request", request
        case 3 | 4:
            return "pass", seconds
        case 5 | 6:
            return "run", seconds
        case _:
            return "cancel", first


# A million: SCHEDULES=1000000 pytest tests/inference/batching -k in_time_and_in_order
@settings(max_examples=int(os.environ.get("SCHEDULES", "200")), deadline=None, database=None)
@given(
    actions=st.binary(min_size=40, max_size=160).map(actions_of),
    batch_size=st.sampled_from(["dynamic", "dynamic", 1, 3]),
    max_batch_size=st.integers(3, 5),
    target_latency=st.sampled_from([None, 3.0]),
)
def test_each_request_is_over_once_in_time_and_in_order(
    actions, batch_size, max_batch_size, target_latency
):
    schedule = ManualBatcher(
        batch_size=batch_size, max_batch_size=max_batch_size, target_latency=target_latency
    )
    for kind, value in actions:
        schedule.act(kind, value)
    schedule.running_for = 0.0
    schedule.batcher.close()
    schedule.check()
