"""The metrics of an engine and of its process, as text for Prometheus.

This module needs `prometheus_client`. A scrape reads counters that the engine keeps anyway, so that
requests pay nothing for it; the counters and histograms of `prometheus_client` would take a lock
and look up labels for each value.
"""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as open_metrics_exposition
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from keras_deepseek import __version__
from keras_deepseek.inference.dispatcher import Dispatcher
from keras_deepseek.inference.monitoring.engine_monitor import Arrivals
from keras_deepseek.inference.server.text_metrics import add_values, collect_text_metrics
from keras_deepseek.inference.server.tf_serving_metrics import collect_tf_serving_metrics

_PROCESS = ProcessCollector(registry=None)
"""Processor time, memory, open files and start of the process, on Linux alone."""

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_CALL = ("model", "version", "protocol", "method")
_VERSION = ("model", "version")


def write_metrics(engine: Dispatcher | None, accept: str = "") -> tuple[bytes, str]:
    """Returns the metrics of an engine and its process as text, with the text's content type.

    Without an engine the text has the process's metrics alone. Its format is OpenMetrics 1.0.0 if
    the header `Accept` names that, else Prometheus's text format 0.0.4.
    """
    collector = _PROCESS if engine is None else EngineCollector(engine)
    if "application/openmetrics-text" in accept:
        # With another escaping it would replace the colons in `vllm:num_requests_waiting`.
        text = open_metrics_exposition.generate_latest(collector, escaping="allow-utf-8")
        return text, open_metrics_exposition.CONTENT_TYPE_LATEST
    return generate_latest(collector), _TEXT


class EngineCollector(Collector):
    """Reads the metric families of an engine, for `prometheus_client`."""

    def __init__(self, engine: Dispatcher) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Yields the metric families with their present values."""
        yield from self._collect_requests()
        yield from self._collect_batches()
        yield from collect_text_metrics(self._engine.text_versions())
        yield from collect_tf_serving_metrics(self._engine.monitor, self._engine.tensor_versions())
        yield from self._collect_versions()
        yield from self._collect_caches()
        yield from _PROCESS.collect()

    def _collect_requests(self) -> list[Metric]:
        arrived = _counter("requests_arrived", "Requests that arrived for a model.", "model")
        rate = _gauge("requests_per_second", "Arrivals a second, in the last ten seconds.", "model")
        in_flight = _gauge("requests_in_flight", "Requests that wait or run now.", "model")
        none_yet = dict.fromkeys(self._engine.models, Arrivals(0, 0, 0.0))
        for model, arrivals in (none_yet | self._engine.monitor.arrivals()).items():
            arrived.add_metric([model], arrivals.total)
            rate.add_metric([model], arrivals.per_second)
            in_flight.add_metric([model], arrivals.in_flight)
        answered = _counter("requests", "Requests that were answered.", *_CALL, "status")
        for (called, status), count in self._engine.monitor.answers().items():
            answered.add_metric([*called, status], count)
        took = _histogram(
            "request_duration_seconds",
            "Seconds from when a request was read to when its answer was sent.",
            *_CALL,
        )
        for called, latencies in self._engine.monitor.latencies().items():
            add_values(took, called, latencies)
        return [arrived, rate, in_flight, answered, took]

    def _collect_batches(self) -> list[Metric]:
        reasons = _counter("batches", "Batches that ran, by why they left.", *_VERSION, "reason")
        rows = _counter("rows", "Rows of requests that ran.", *_VERSION)
        padded = _counter("padded_rows", "Rows that were added to fill batches.", *_VERSION)
        busy = _counter("model_seconds", "Seconds in the model, of all replicas.", *_VERSION)
        sizes = _histogram("batch_rows", "Rows of requests in a batch.", *_VERSION)
        ages = _histogram(
            "batch_queue_age_seconds", "Seconds that a batch's oldest row waited.", *_VERSION
        )
        times = _histogram("batch_duration_seconds", "Seconds in the model, a batch.", *_VERSION)
        waiting = _gauge("queue_rows", "Rows that wait now.", *_VERSION)
        oldest = _gauge("queue_age_seconds", "Seconds that the oldest row waits now.", *_VERSION)
        replicas = _gauge("replicas", "Threads that run the model.", *_VERSION)
        for version in self._engine.tensor_versions():
            labels = (version.name, str(version.number))
            statistics = version.statistics()
            for reason, count in sorted(statistics.reasons.items()):
                reasons.add_metric([*labels, reason], count)
            rows.add_metric(labels, statistics.rows)
            padded.add_metric(labels, statistics.padded_rows)
            busy.add_metric(labels, statistics.busy_seconds)
            add_values(sizes, labels, statistics.batch_rows)
            add_values(ages, labels, statistics.queue_ages)
            add_values(times, labels, statistics.batch_seconds)
            waiting.add_metric(labels, statistics.waiting_rows)
            oldest.add_metric(labels, statistics.queue_age)
            replicas.add_metric(labels, statistics.replicas)
        return [reasons, rows, padded, busy, sizes, ages, times, waiting, oldest, replicas]

    def _collect_versions(self) -> list[Metric]:
        states = _gauge(
            "model_version_state", "1 for the state that a version is in.", *_VERSION, "state"
        )
        shares = _gauge("trial_share", "The part of requests for a version on trial.", *_VERSION)
        for name, served in self._engine.models.items():
            for number, version in served.states.items():
                states.add_metric([name, str(number), version.state], 1)
            for number, share in served.on_trial.items():
                shares.add_metric([name, str(number)], share)
        loads = _counter("loads", "Versions that were loaded, or failed to.", "model", "result")
        for labels, count in self._engine.monitor.loads().items():
            loads.add_metric(labels, count)
        took = _gauge("last_load_seconds", "Seconds that the last load and warm-up took.", "model")
        for name, seconds in self._engine.monitor.load_seconds().items():
            took.add_metric([name], seconds)
        ready = _gauge("ready", "1 if the engine, and all servers, answer that they are ready.")
        are_ready = all(server.ready for server in self._engine.servers)
        ready.add_metric([], int(self._engine.ready and are_ready))
        build = _gauge("build_info", "The version of keras_deepseek.", "version")
        build.add_metric([__version__], 1)
        return [states, shares, loads, took, ready, build]

    def _collect_caches(self) -> list[Metric]:
        hits = _counter("cache_hits", "Requests that the cache answered.", *_VERSION)
        misses = _counter("cache_misses", "Requests whose answer was not in the cache.", *_VERSION)
        entries = _gauge("cache_entries", "Answers in the cache.", *_VERSION)
        for version in self._engine.tensor_versions():
            if version.cache is not None:
                counts = version.cache.counts()
                for family, value in zip((hits, misses, entries), counts, strict=True):
                    family.add_metric([version.name, str(version.number)], value)
        return [hits, misses, entries]


def _counter(name: str, documentation: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"keras_deepseek_{name}", documentation, labels=labels)


def _gauge(name: str, documentation: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"keras_deepseek_{name}", documentation, labels=labels)


def _histogram(name: str, documentation: str, *labels: str) -> HistogramMetricFamily:
    return HistogramMetricFamily(f"keras_deepseek_{name}", documentation, labels=labels)
