import threading
import time
import weakref

import numpy as np

from keras_deepseek.inference.batching.batch import Request
from keras_deepseek.inference.batching.late_requests import NUM_KEPT, DeadlineWatch


def request_of(deadline):
    return Request({"x": np.zeros((1, 1))}, deadline=deadline)


def test_it_knows_which_are_due_and_gives_each_once():
    watch = DeadlineWatch(lambda: None, clock=lambda: 0.0)
    late, soon = request_of(9.0), request_of(5.0)
    assert not watch.is_due(100.0)
    watch.add(late)
    watch.add(soon)
    assert not watch.is_due(4.9)
    assert watch.is_due(5.0)
    assert watch.take_due(5.0) == [soon]
    assert watch.take_due(9.0) == [late]
    assert watch.take_due(9.0) == []
    watch.close()


def test_what_was_answered_is_not_due():
    watch = DeadlineWatch(lambda: None, clock=lambda: 0.0)
    request = request_of(1.0)
    watch.add(request)
    request.withdraw()
    assert watch.take_due(2.0) == []
    watch.close()


def test_what_was_answered_is_not_kept_until_its_deadline():
    watch = DeadlineWatch(lambda: None, clock=lambda: 0.0)
    requests = [request_of(1.0) for _ in range(10 * NUM_KEPT)]
    for request in requests:
        watch.add(request)
        request.withdraw()
    assert len(watch._heap) <= NUM_KEPT + 1
    watch.close()


def test_an_answered_request_and_its_inputs_are_not_kept():
    watch = DeadlineWatch(lambda: None, clock=lambda: 0.0)
    request = request_of(1.0)
    watch.add(request)
    reference = weakref.ref(request)
    del request
    assert reference() is None
    assert watch.take_due(2.0) == []
    watch.close()


def test_its_thread_wakes_when_a_deadline_passes():
    times, woken = [0.0], threading.Event()

    def wake():
        late.extend(watch.take_due(times[0]))
        woken.set()

    late = []
    watch = DeadlineWatch(wake, clock=lambda: times[0])
    wait = watch._condition.wait

    def let_time_pass(timeout):
        if timeout is None:
            return wait()
        times[0] += timeout
        return True

    watch._condition.wait = let_time_pass
    request = request_of(3.0)
    watch.add(request)
    assert woken.wait(60)
    assert late == [request]
    watch.close()
    assert not watch._thread.is_alive()


def test_a_deadline_beyond_all_that_a_thread_can_wait_for_does_no_harm():
    watch = DeadlineWatch(lambda: None, clock=time.monotonic)
    entered, wait = threading.Event(), watch._condition.wait

    def wait_and_tell(timeout):
        entered.set()
        return wait(timeout)

    watch._condition.wait = wait_and_tell
    watch.add(request_of(1e19))
    assert entered.wait(60)
    watch.close()
    assert not watch._thread.is_alive()
