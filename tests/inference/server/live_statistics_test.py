import pytest

from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.monitoring.request_trace import RequestTrace
from keras_deepseek.inference.server.live_line import LiveStatisticsReader


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def end(engine, seconds, version="1"):
    trace = RequestTrace("tf_serving", "predict")
    trace.model, trace.version = "model", version
    trace.started -= seconds
    engine.monitor.end(trace, 200)


def test_the_numbers_are_those_since_the_last_reading(doubler, rows):
    clock = Clock()
    with ServingEngine(doubler, max_batch_size=4) as engine:
        end(engine, 5.0)
        engine.predict(rows(1))
        reader = LiveStatisticsReader(engine, clock)
        for _ in range(99):
            end(engine, 0.0105)
        end(engine, 1.5)
        engine.predict(rows(1, 2, 3))
        clock.now += 2.0
        statistics = reader.read()
        assert (statistics.requests_per_second, statistics.batch_rows) == (50.0, 3.0)
        assert 0.01 < statistics.p50 < 0.015
        assert 0.01 < statistics.p99 <= 0.015
        assert (0.0 < statistics.busy < 1.0, statistics.waiting_rows) == (True, 0)
        clock.now += 1.0
        statistics = reader.read()
        assert (statistics.requests_per_second, statistics.batch_rows, statistics.busy) == (
            0.0,
            None,
            0.0,
        )
        assert (statistics.p50, statistics.p99) == (None, None)


def test_numbers_that_the_monitor_forgets_do_not_count_against_others(doubler):
    clock = Clock()
    with ServingEngine(doubler) as engine:
        engine.monitor._clock = clock
        for _ in range(10):
            end(engine, 0.1, version="9")
        reader = LiveStatisticsReader(engine, clock)
        end(engine, 0.12)
        clock.now += 1000.0
        statistics = reader.read()
        assert all(called[1] != "9" for called in engine.monitor.latencies())
        assert (statistics.requests_per_second, 0.1 < statistics.p50 <= 0.15) == (0.001, True)


def test_requests_that_no_model_answers_do_not_count(doubler):
    with ServingEngine(doubler) as engine:
        reader = LiveStatisticsReader(engine)
        end(engine, 0.1, version="")
        assert reader.read().requests_per_second == 0.0


def test_a_version_that_is_unloaded_does_not_take_numbers_below_zero(doubler, rows):
    clock = Clock()
    with ServingEngine(doubler) as engine:
        engine.predict(rows(1, 2))
        reader = LiveStatisticsReader(engine, clock)
        engine.load(doubler)
        clock.now += 1.0
        statistics = reader.read()
        assert (statistics.batch_rows, statistics.busy) == (None, pytest.approx(0.0))
