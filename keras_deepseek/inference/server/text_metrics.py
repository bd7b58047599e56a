"""The metrics of language models: with names of this package, and with those of vLLM beside them.

Dashboards and autoscalers for vLLM find what they ask for under its names. It needs
`prometheus_client`, as `metrics` does.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, get_type_hints

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from keras_deepseek.inference.histogram import HistogramValues, sum_values
from keras_deepseek.inference.models.text_version import TextVersion
from keras_deepseek.inference.text.text_totals import TextStatistics

_OURS = "keras_deepseek_text_"
_VLLM = "vllm:"

_FINISHED_REASONS = {
    "stop": "stop",
    "length": "length",
    "cancelled": "abort",
    "deadline": "abort",
    "failed": "error",
}
"""vLLM's words for the ways in which an answer ends."""


_GAUGE, _COUNTER, _TIMES = GaugeMetricFamily, CounterMetricFamily, HistogramMetricFamily

_METRICS: Mapping[str, tuple[Callable[..., Any], str, str]] = {
    "num_waiting": (_GAUGE, "requests_waiting", "num_requests_waiting"),
    "num_reading": (_GAUGE, "requests_reading", ""),
    "num_running": (_GAUGE, "requests_running", "num_requests_running"),
    "used_share": (_GAUGE, "cache_usage", "kv_cache_usage_perc"),
    "rows": (_GAUGE, "cache_rows", ""),
    "slots": (_GAUGE, "cache_slots", ""),
    "num_prompt_tokens": (_COUNTER, "prompt_tokens", "prompt_tokens"),
    "num_tokens": (_COUNTER, "generated_tokens", "generation_tokens"),
    "num_compilations": (_COUNTER, "compilations", ""),
    "first_token": (_TIMES, "first_token_seconds", "time_to_first_token_seconds"),
    "between_tokens": (_TIMES, "between_tokens_seconds", "inter_token_latency_seconds"),
    "request": (_TIMES, "request_seconds", "e2e_request_latency_seconds"),
}
"""The kind of the metric for a field of `TextStatistics`, our name and vLLM's, if it has one."""

_HINTS = get_type_hints(TextStatistics, include_extras=True)


_Labelled = dict[tuple[str, ...], list[TextStatistics]]
"""The statistics of the versions that share a line of the text, by its labels."""


def add_values(
    family: HistogramMetricFamily, labels: Sequence[str], values: HistogramValues
) -> None:
    """Adds the values of a histogram to a family."""
    bounds = [*(str(float(bound)) for bound in values.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(values.counts), strict=True))
    family.add_metric(labels, buckets, values.sum)


def collect_text_metrics(versions: Iterable[TextVersion]) -> list[Metric]:
    """Returns the metric families of all versions of language models. Without any: none."""
    by_name: _Labelled = {}
    by_version: _Labelled = {}
    for version in versions:
        statistics = version.engine.statistics()
        by_version[version.name, str(version.number)] = [statistics]
        by_name.setdefault((version.name,), []).append(statistics)
    if not by_name:
        return []
    return [
        *_collect(by_version, _OURS, ("model", "version")),
        *_collect(by_name, _VLLM, ("model_name",)),
        *_collect_outcomes(by_version, by_name),
    ]


def _collect(labelled: _Labelled, prefix: str, names: tuple[str, ...]) -> list[Metric]:
    families: list[Metric] = []
    for field, (kind, our_name, vllm_name) in _METRICS.items():
        name = our_name if prefix == _OURS else vllm_name
        if not name:
            continue
        family = kind(prefix + name, _HINTS[field].__metadata__[0], labels=names)
        for labels, statistics in labelled.items():
            values = [getattr(version, field) for version in statistics]
            if kind is _TIMES:
                add_values(family, labels, sum_values(values))
            else:
                family.add_metric(labels, max(values) if field == "used_share" else sum(values))
        families.append(family)
    return families


def _collect_outcomes(by_version: _Labelled, by_name: _Labelled) -> list[Metric]:
    ours = CounterMetricFamily(
        f"{_OURS}answers",
        "Answers that have ended, or were refused, by how.",
        labels=("model", "version", "outcome"),
    )
    for labels, (version,) in by_version.items():
        for outcome, count in sorted(version.outcomes.items()):
            ours.add_metric([*labels, outcome], count)
    vllm = CounterMetricFamily(
        f"{_VLLM}request_success",
        "Answers that have ended, by why.",
        labels=("model_name", "finished_reason"),
    )
    for labels, versions in by_name.items():
        counts = dict.fromkeys(_FINISHED_REASONS.values(), 0)
        for outcome, reason in _FINISHED_REASONS.items():
            counts[reason] += sum(version.outcomes.get(outcome, 0) for version in versions)
        for reason, count in counts.items():
            vllm.add_metric([*labels, reason], count)
    return [ours, vllm]
