import threading

import pytest

from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.monitoring.engine_monitor import (
    KEEP_SECONDS,
    MAX_GONE,
    RATE_SECONDS,
    Arrivals,
    EngineMonitor,
)
from keras_deepseek.inference.monitoring.request_trace import RequestTrace

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


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def answer(monitor, version, model="digits"):
    trace = RequestTrace("tf_serving", "predict")
    trace.model, trace.version = model, version
    monitor.end(trace, 200)


def versions_of(monitor):
    return {called[1] for called, _ in monitor.answers()}


@pytest.fixture
def served():
    return {("digits", ""), ("digits", "1")}


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def monitor(served, clock):
    return EngineMonitor(lambda model, version: (model, version) in served, clock)


def test_the_numbers_of_a_version_end_a_while_after_it_is_gone(monitor, served, clock):
    answer(monitor, "1")
    monitor.end(RequestTrace("http", "health"), 200)
    clock.now += 10 * KEEP_SECONDS
    assert versions_of(monitor) == {"1", ""}
    served.remove(("digits", "1"))
    assert versions_of(monitor) == {"1", ""}
    clock.now += KEEP_SECONDS - 1
    assert versions_of(monitor) == {"1", ""}
    clock.now += 1
    assert versions_of(monitor) == {""}
    assert [called[3] for called in monitor.latencies()] == ["health"]


def test_a_version_that_comes_back_in_time_keeps_its_numbers(monitor, served, clock):
    answer(monitor, "1")
    served.remove(("digits", "1"))
    assert versions_of(monitor) == {"1"}
    clock.now += KEEP_SECONDS - 1
    served.add(("digits", "1"))
    assert versions_of(monitor) == {"1"}
    served.remove(("digits", "1"))
    clock.now += 2
    answer(monitor, "1")
    (count,) = monitor.answers().values()
    assert count == 2


def test_a_model_that_is_gone_takes_its_loads_with_it(monitor, served, clock):
    for name in ("digits", "cats"):
        with monitor.loading(name):
            pass
    assert set(monitor.loads()) == {("digits", "success"), ("cats", "success")}
    clock.now += KEEP_SECONDS
    assert set(monitor.loads()) == {("digits", "success")}
    assert set(monitor.load_seconds()) == {"digits"}


def test_reloads_without_end_and_without_a_reader_do_not_grow_it(monitor, served):
    for number in range(4 * MAX_GONE):
        served.add(("digits", str(number)))
        answer(monitor, str(number))
        served.remove(("digits", str(number)))
    assert len(monitor._latencies) <= MAX_GONE + 1
    assert len(monitor._answers) <= MAX_GONE + 1
    assert len(monitor._gone) <= MAX_GONE
    assert str(4 * MAX_GONE - 1) in versions_of(monitor)  # The last that went is kept.


def test_an_engine_s_own_versions_are_forgotten(doubler, clock):
    with ServingEngine(doubler, name="digits") as engine:
        engine.monitor._clock = clock
        answer(engine.monitor, "1")
        engine.load(doubler)
        answer(engine.monitor, "2")
        assert versions_of(engine.monitor) == {"1", "2"}
        clock.now += KEEP_SECONDS
        assert versions_of(engine.monitor) == {"2"}
        assert engine.monitor.loads() == {("digits", "success"): 2}


def test_arrivals_are_counted_at_once_and_are_in_flight_until_they_end(monitor, clock):
    traces = [RequestTrace("tf_serving", "predict") for _ in range(5)]
    for trace in traces:
        trace.model = "digits"
        monitor.arrive(trace)
        monitor.arrive(trace)  # Its version was closed meanwhile, and another one takes it.
    monitor.end(traces[0], 200)
    monitor.end(traces[1], 429)
    monitor.end(RequestTrace("http", "health"), 200)
    assert monitor.arrivals() == {"digits": Arrivals(5, 3, 0.0)}
    clock.now += 1
    assert monitor.arrivals()["digits"].per_second == 5 / RATE_SECONDS
    clock.now += RATE_SECONDS
    assert monitor.arrivals() == {"digits": Arrivals(5, 3, 0.0)}


def test_the_rate_is_that_of_the_last_whole_seconds(monitor, clock):
    for second in range(100):
        clock.now = second
        for _ in range(second):
            trace = RequestTrace("tf_serving", "predict")
            trace.model = "digits"
            monitor.arrive(trace)
    assert monitor.arrivals()["digits"].per_second == sum(range(89, 99)) / RATE_SECONDS


def test_a_model_that_is_gone_takes_its_arrivals_with_it(monitor, clock):
    trace = RequestTrace("tf_serving", "predict")
    trace.model = "cats"
    monitor.arrive(trace)
    assert set(monitor.arrivals()) == {"cats"}
    clock.now += KEEP_SECONDS
    assert not monitor.arrivals()
    monitor.end(trace, 200)
