import pytest

from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.monitoring.metrics import collect_metrics
from keras_deepseek.inference.monitoring.request_trace import RequestTrace


def numbers(engine, name):
    """Returns the numbers of one family by their labels' values."""
    (family,) = [family for family in collect_metrics(engine) if family.name == name]
    return {tuple(value for _, value in labels): number for labels, number in family.samples}


def test_the_numbers_are_those_of_each_version(doubler, rows):
    with ServingEngine(doubler, name="double", max_batch_size=4) as engine:
        engine.predict(rows(1, 2, 3))
        engine.load(doubler, keep=2)
        engine.predict(rows(1))
        assert numbers(engine, "keras_deepseek_rows") == {("double", "1"): 3, ("double", "2"): 1}
        padded = numbers(engine, "keras_deepseek_padded_rows")
        assert padded == {("double", "1"): 1, ("double", "2"): 0}
        assert numbers(engine, "keras_deepseek_batches")["double", "1", "idle"] == 1
        assert numbers(engine, "keras_deepseek_batch_rows")["double", "1"].sum == 3
        busy = numbers(engine, "keras_deepseek_model_seconds")["double", "1"]
        assert busy == engine.statistics(version=1).busy_seconds > 0
        states = numbers(engine, "keras_deepseek_model_version_state")
        assert states == {("double", "1", "AVAILABLE"): 1, ("double", "2", "AVAILABLE"): 1}


def test_what_waits_is_shown(doubler, rows):
    with ServingEngine(doubler, warm_up=False) as engine:
        doubler.hold()
        running = engine.submit(rows(1))
        assert doubler.entered.wait(60)
        waiting = engine.submit(rows(2, 3))
        assert numbers(engine, "keras_deepseek_queue_rows") == {("model", "1"): 2}
        assert numbers(engine, "keras_deepseek_queue_age_seconds")["model", "1"] > 0
        doubler.release()
        assert len(running.result()["y"]) + len(waiting.result()["y"]) == 3
        assert numbers(engine, "keras_deepseek_queue_age_seconds")["model", "1"] == 0


def test_loads_and_trials_are_counted(doubler):
    class Broken:
        signature = doubler.signature

        def run(self, inputs):
            raise ArithmeticError

    with ServingEngine(doubler) as engine:
        engine.load(doubler, share=0.25)
        with pytest.raises(ArithmeticError):
            engine.load(Broken())
        loads = numbers(engine, "keras_deepseek_loads")
        assert loads == {("model", "success"): 2, ("model", "failure"): 1}
        assert numbers(engine, "keras_deepseek_trial_share") == {("model", "2"): 0.25}
        assert numbers(engine, "keras_deepseek_last_load_seconds")["model",] > 0
        assert numbers(engine, "keras_deepseek_ready") == {(): 1}


def test_requests_are_those_that_the_monitor_was_told_of(doubler):
    with ServingEngine(doubler) as engine:
        engine.monitor.end(RequestTrace("tf_serving", "predict"), 200)
        answered = numbers(engine, "keras_deepseek_requests")
        assert answered == {("", "", "tf_serving", "predict", "200"): 1}
        (latency,) = numbers(engine, "keras_deepseek_request_duration_seconds").values()
        assert latency.count == 1


def test_the_process_is_shown(doubler):
    engine = ServingEngine(doubler)
    assert numbers(engine, "process_cpu_seconds")[()] > 0
