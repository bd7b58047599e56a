import asyncio

import pytest

from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.histogram import ROWS, SECONDS
from keras_deepseek.inference.monitoring.request_trace import RequestTrace

prometheus_parser = pytest.importorskip("prometheus_client.parser")
open_metrics_parser = pytest.importorskip("prometheus_client.openmetrics.parser")

CALL = {"model", "version", "protocol", "method"}
VERSION = {"model", "version"}
FAMILIES = {
    "requests_arrived": ("counter", {"model"}),
    "requests_per_second": ("gauge", {"model"}),
    "requests_in_flight": ("gauge", {"model"}),
    "requests": ("counter", CALL | {"status"}),
    "request_duration_seconds": ("histogram", CALL),
    "batches": ("counter", VERSION | {"reason"}),
    "rows": ("counter", VERSION),
    "padded_rows": ("counter", VERSION),
    "model_seconds": ("counter", VERSION),
    "batch_rows": ("histogram", VERSION),
    "batch_queue_age_seconds": ("histogram", VERSION),
    "batch_duration_seconds": ("histogram", VERSION),
    "queue_rows": ("gauge", VERSION),
    "queue_age_seconds": ("gauge", VERSION),
    "replicas": ("gauge", VERSION),
    "model_version_state": ("gauge", VERSION | {"state"}),
    "trial_share": ("gauge", VERSION),
    "loads": ("counter", {"model", "result"}),
    "last_load_seconds": ("gauge", {"model"}),
    "ready": ("gauge", set()),
    "build_info": ("gauge", {"version"}),
    "cache_hits": ("counter", VERSION),
    "cache_misses": ("counter", VERSION),
    "cache_entries": ("gauge", VERSION),
    ":tensorflow:serving:request_count": ("unknown", {"model_name", "status"}),
    ":tensorflow:serving:request_latency": ("histogram", {"model_name", "API", "entrypoint"}),
    ":tensorflow:serving:runtime_latency": ("histogram", {"model_name", "API", "runtime"}),
}
"""The type and the labels of each family: dashboards and alerts depend on them."""


@pytest.fixture
def busy_engine(doubler, rows):
    """An engine whose every family has a sample."""
    with ServingEngine(doubler, name="double", max_batch_size=4, cache_entries=4) as engine:
        engine.predict(rows(1, 2, 3))
        engine.load(doubler, share=0.25)
        trace = RequestTrace("tf_serving", "predict")
        trace.model, trace.version = "double", "1"
        engine.monitor.end(trace, 200)
        yield engine


def parse(engine, open_metrics=False):
    from keras_deepseek.inference.server.metrics import write_metrics

    body, _ = write_metrics(engine, "application/openmetrics-text" if open_metrics else "")
    parser = open_metrics_parser if open_metrics else prometheus_parser
    families = parser.text_string_to_metric_families(body.decode())
    return {family.name: family for family in families}


def numbers(engine, name):
    """Returns the samples of one name by the values of their labels."""
    family = parse(engine)[name.removesuffix("_total").removesuffix("_sum")]
    return {
        tuple(sample.labels.values()): sample.value
        for sample in family.samples
        if sample.name == name
    }


@pytest.mark.parametrize("open_metrics", [False, True])
def test_families_keep_their_names_types_and_labels(busy_engine, open_metrics):
    families = parse(busy_engine, open_metrics)
    assert {
        name.removeprefix("keras_deepseek_"): (
            family.type,
            set().union(*(sample.labels for sample in family.samples)) - {"le"},
        )
        for name, family in families.items()
        if not name.startswith("process_")
    } == FAMILIES


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("request_duration_seconds", SECONDS),
        ("batch_rows", ROWS),
        ("batch_queue_age_seconds", SECONDS),
        ("batch_duration_seconds", SECONDS),
    ],
)
def test_buckets_are_cumulative_and_end_at_infinity(busy_engine, name, bounds):
    samples = parse(busy_engine)[f"keras_deepseek_{name}"].samples
    labels = {key: value for key, value in samples[0].labels.items() if key != "le"}
    buckets = [
        sample
        for sample in samples
        if sample.name.endswith("_bucket") and labels.items() <= sample.labels.items()
    ]
    assert [float(sample.labels["le"]) for sample in buckets] == [*bounds, float("inf")]
    counts = [sample.value for sample in buckets]
    assert counts == sorted(counts)
    total = next(
        sample.value
        for sample in samples
        if sample.name.endswith("_count") and sample.labels == labels
    )
    assert counts[-1] == total > 0


def test_the_numbers_are_those_of_each_version(doubler, rows):
    with ServingEngine(doubler, name="double", max_batch_size=4) as engine:
        engine.predict(rows(1, 2, 3))
        engine.load(doubler, keep=2)
        engine.predict(rows(1))
        rows_by_version = numbers(engine, "keras_deepseek_rows_total")
        assert rows_by_version == {("double", "1"): 3, ("double", "2"): 1}
        padded = numbers(engine, "keras_deepseek_padded_rows_total")
        assert padded == {("double", "1"): 1, ("double", "2"): 0}
        batches = parse(engine)["keras_deepseek_batches"].samples
        labels = {"model": "double", "version": "1", "reason": "idle"}
        assert [sample.value for sample in batches if sample.labels == labels] == [1]
        assert numbers(engine, "keras_deepseek_batch_rows_sum")["double", "1"] == 3
        busy = numbers(engine, "keras_deepseek_model_seconds_total")["double", "1"]
        assert busy == engine.statistics(version=1).busy_seconds > 0


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
        loads = numbers(engine, "keras_deepseek_loads_total")
        assert loads == {("model", "success"): 2, ("model", "failure"): 1}
        assert numbers(engine, "keras_deepseek_trial_share") == {("model", "2"): 0.25}
        assert numbers(engine, "keras_deepseek_last_load_seconds")["model",] > 0
        assert numbers(engine, "keras_deepseek_ready") == {(): 1}


def test_an_unready_server_is_not_ready(doubler):
    pytest.importorskip("uvicorn")
    with ServingEngine(doubler) as engine:
        server = engine.serve(0)
        assert numbers(engine, "keras_deepseek_ready") == {(): 1}
        server.announce_unready()
        assert numbers(engine, "keras_deepseek_ready") == {(): 0}


def test_requests_are_those_that_the_monitor_was_told_of(doubler):
    with ServingEngine(doubler) as engine:
        engine.monitor.end(RequestTrace("tf_serving", "predict"), 200)
        (sample,) = parse(engine)["keras_deepseek_requests"].samples
        assert sample.value == 1
        assert sample.labels == {
            "model": "",
            "version": "",
            "protocol": "tf_serving",
            "method": "predict",
            "status": "200",
        }


def test_the_process_is_shown(doubler):
    engine = ServingEngine(doubler)
    assert numbers(engine, "process_cpu_seconds_total")[()] > 0


def test_what_waits_is_counted_as_arrived_and_in_flight(doubler, rows, loop):
    with ServingEngine(doubler, warm_up=False) as engine:
        assert numbers(engine, "keras_deepseek_requests_arrived_total") == {("model",): 0}
        doubler.hold()

        async def ask():
            traces = [RequestTrace("tf_serving", "predict") for _ in range(3)]
            answers = [engine.dispatch_async(lambda _: rows(1), trace)[0] for trace in traces]
            assert numbers(engine, "keras_deepseek_requests_arrived_total") == {("model",): 3}
            assert numbers(engine, "keras_deepseek_requests_in_flight") == {("model",): 3}
            doubler.release()
            await asyncio.gather(*answers)
            for trace in traces:
                engine.monitor.end(trace, 200)

        loop.run_until_complete(ask())
        assert numbers(engine, "keras_deepseek_requests_in_flight") == {("model",): 0}
        assert numbers(engine, "keras_deepseek_requests_per_second")["model",] >= 0
