import threading

import pytest

from keras_deepseek.inference.engine_monitor import EngineMonitor
from keras_deepseek.inference.request_trace import RequestTrace

CALLED = ("", "", "tf_serving", "predict")


def test_requests_are_counted_by_what_was_called_and_how_it_ended():
    monitor = EngineMonitor()
    for status in (200, 200, 404):
        monitor.end(RequestTrace("tf_serving", "predict"), status)
    assert monitor.answers() == {(CALLED, "200"): 2, (CALLED, "404"): 1}
    assert monitor.latencies()[CALLED].count == 3


def test_the_time_is_that_since_the_trace_was_made():
    trace = RequestTrace()
    trace.started -= 2.0
    assert 2.0 <= EngineMonitor().end(trace, "OK") < 60.0


def test_a_load_that_raises_has_failed():
    monitor = EngineMonitor()
    with monitor.loading("a"):
        pass
    with pytest.raises(ArithmeticError), monitor.loading("a"):
        raise ArithmeticError
    assert monitor.loads() == {("a", "success"): 1, ("a", "failure"): 1}
    assert list(monitor.load_seconds()) == ["a"]


def test_threads_lose_no_count():
    monitor = EngineMonitor()

    def count():
        for _ in range(2000):
            monitor.end(RequestTrace("tf_serving", "predict"), 200)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert monitor.answers() == {(CALLED, "200"): 8000}
    assert monitor.latencies()[CALLED].count == 8000
