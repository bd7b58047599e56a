"""The metrics of TF Serving's calls under TF Serving's names, for dashboards that exist.

It needs `prometheus_client`, as `metrics` does.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from keras_deepseek.inference.errors import STATUSES
from keras_deepseek.inference.histogram import HistogramValues, sum_values
from keras_deepseek.inference.models.model_version import ModelVersion
from keras_deepseek.inference.monitoring.engine_monitor import Called, EngineMonitor
from keras_deepseek.inference.server.text_metrics import add_values

_PREFIX = ":tensorflow:serving:"
_ENTRYPOINTS = {"tf_serving": "REST", "tf_serving_grpc": "GRPC"}
_APIS = ("Predict", "Classify", "Regress", "MultiInference")

_STATUSES = {"200": "OK", "401": "UNAUTHENTICATED", "499": "CANCELLED"} | {
    str(status): word for _, status, word in STATUSES
}
"""gRPC's words for the statuses of HTTP."""


def collect_tf_serving_metrics(
    monitor: EngineMonitor, versions: Iterable[ModelVersion]
) -> list[Metric]:
    """Returns the requests and their durations by TF Serving's clients. Without any: none."""
    counts: Counter[tuple[str, str]] = Counter()
    for (called, status), count in monitor.answers().items():
        if _api_of(called):
            is_word = not status.isdecimal()
            word = status if is_word else _STATUSES.get(status, "UNKNOWN")
            counts[called[0], word] += count
    if not counts:
        return []
    # Its sample has no `_total`, as that of a counter would.
    total = Metric(_PREFIX + "request_count", "The total number of requests.", "unknown")
    for (model, status), count in counts.items():
        labels = {"model_name": model, "status": status}
        total.add_sample(total.name, labels, count)
    latencies = defaultdict(list)
    for called, values in monitor.latencies().items():
        if api := _api_of(called):
            latencies[called[0], api, _ENTRYPOINTS[called[2]]].append(values)
    requests = _times("request_latency", "for a request", "entrypoint", latencies)
    batches = defaultdict(list)
    for version in versions:
        seconds = version.statistics().batch_seconds
        batches[version.name, "Predict", "keras_deepseek"].append(seconds)
    return [total, requests, _times("runtime_latency", "in the model", "runtime", batches)]


def _api_of(called: Called) -> str:
    """Returns TF Serving's name of a call to a served model, or an empty string."""
    model, _, protocol, call = called
    api = call[:1].upper() + call[1:]
    return api if model and protocol in _ENTRYPOINTS and api in _APIS else ""


def _times(
    name: str,
    what: str,
    label: str,
    histograms: dict[tuple[str, str, str], list[HistogramValues]],
) -> HistogramMetricFamily:
    """Returns histograms of seconds as a family of TF Serving's, in microseconds."""
    text = f"Distribution of wall time (in microseconds) {what}."
    family = HistogramMetricFamily(_PREFIX + name, text, labels=("model_name", "API", label))
    for labels, values in histograms.items():
        total = sum_values(values)
        bounds = tuple(1e6 * bound for bound in total.bounds)
        add_values(family, labels, replace(total, bounds=bounds, sum=1e6 * total.sum))
    return family
