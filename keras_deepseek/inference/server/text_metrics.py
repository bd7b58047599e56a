"""The metrics of language models: with names of this package, and with those of vLLM beside them.

Dashboards and autoscalers for vLLM find what they ask for under its names. It needs
`prometheus_client`, as `metrics` does.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

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


class _Number(NamedTuple):
    """A number of a language model. Those of several versions are combined for vLLM's name."""

    name: str
    vllm_name: str
    text: str
    read: Callable[[TextStatistics], float]
    combine: Callable[[Iterable[float]], float] = sum


class _Times(NamedTuple):
    """A histogram of seconds."""

    name: str
    vllm_name: str
    text: str
    read: Callable[[TextStatistics], HistogramValues]


_GAUGES = (
    _Number(
        "requests_waiting",
        "num_requests_waiting",
        "Answers that wait for a row.",
        lambda statistics: statistics.num_waiting,
    ),
    _Number("requests_reading", "", "Prompts that are being read.", lambda s: s.num_reading),
    _Number(
        "requests_running",
        "num_requests_running",
        "Answers that have a row or whose prompt is being read.",
        lambda statistics: statistics.num_reading + statistics.num_running,
    ),
    _Number(
        "cache_usage",
        "kv_cache_usage_perc",
        "The used part of the largest cache, from 0 to 1.",
        lambda statistics: statistics.used_share,
        max,
    ),
    _Number("cache_rows", "", "Rows of the present cache.", lambda s: s.rows),
    _Number("cache_slots", "", "Tokens of a row of the present cache.", lambda s: s.slots),
)
_COUNTERS = (
    _Number(
        "prompt_tokens",
        "prompt_tokens",
        "Tokens of prompts that were read.",
        lambda statistics: statistics.num_prompt_tokens,
    ),
    _Number(
        "generated_tokens",
        "generation_tokens",
        "Tokens of answers.",
        lambda statistics: statistics.num_tokens,
    ),
    _Number(
        "compilations",
        "",
        "Compiled or recorded steps. It should not grow while requests are answered.",
        lambda statistics: statistics.num_compilations,
    ),
)
_HISTOGRAMS = (
    _Times(
        "first_token_seconds",
        "time_to_first_token_seconds",
        "Seconds from a request to the first token of its answer.",
        lambda statistics: statistics.first_token,
    ),
    _Times(
        "between_tokens_seconds",
        "inter_token_latency_seconds",
        "Seconds between two tokens of an answer.",
        lambda statistics: statistics.between_tokens,
    ),
    _Times(
        "request_seconds",
        "e2e_request_latency_seconds",
        "Seconds from a request to the end of its answer.",
        lambda statistics: statistics.request,
    ),
)


def add_values(
    family: HistogramMetricFamily, labels: Sequence[str], values: HistogramValues
) -> None:
    """Adds the values of a histogram to a family."""
    bounds = [*(str(float(bound)) for bound in values.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(values.counts), strict=True))
    family.add_metric(labels, buckets, values.sum)


def collect_text_metrics(versions: Iterable[TextVersion]) -> list[Metric]:
    """Returns the metric families of all versions of language models. Without any: none."""
    by_name: dict[str, list[TextStatistics]] = {}
    by_version: dict[tuple[str, str], list[TextStatistics]] = {}
    for version in versions:
        statistics = version.engine.statistics()
        by_version[version.name, str(version.number)] = [statistics]
        by_name.setdefault(version.name, []).append(statistics)
    if not by_name:
        return []
    named = {(name,): statistics for name, statistics in by_name.items()}
    return [
        *_collect(by_version, _OURS, ("model", "version")),
        _collect_outcomes(by_version),
        *_collect(named, _VLLM, ("model_name",)),
        _collect_finished(named),
    ]


_Labelled = dict[tuple[str, str], list[TextStatistics]] | dict[tuple[str], list[TextStatistics]]
"""The statistics of the versions that share a line of the text, by its labels."""


def _collect(labelled: _Labelled, prefix: str, names: tuple[str, ...]) -> list[Metric]:
    families: list[Metric] = []
    for kind, numbers in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
        for number in numbers:
            name = number.name if prefix == _OURS else number.vllm_name
            if name:
                family = kind(prefix + name, number.text, labels=names)
                for labels, statistics in labelled.items():
                    family.add_metric(labels, number.combine(map(number.read, statistics)))
                families.append(family)
    for times in _HISTOGRAMS:
        name = times.name if prefix == _OURS else times.vllm_name
        histogram = HistogramMetricFamily(prefix + name, times.text, labels=names)
        for labels, statistics in labelled.items():
            add_values(histogram, labels, sum_values(map(times.read, statistics)))
        families.append(histogram)
    return families


def _collect_outcomes(labelled: _Labelled) -> Metric:
    family = CounterMetricFamily(
        f"{_OURS}answers",
        "Answers that have ended, or were refused, by how.",
        labels=("model", "version", "outcome"),
    )
    for labels, (statistics,) in labelled.items():
        for outcome, count in sorted(statistics.outcomes.items()):
            family.add_metric([*labels, outcome], count)
    return family


def _collect_finished(labelled: _Labelled) -> Metric:
    family = CounterMetricFamily(
        f"{_VLLM}request_success",
        "Answers that have ended, by why.",
        labels=("model_name", "finished_reason"),
    )
    for labels, statistics in labelled.items():
        counts = dict.fromkeys(_FINISHED_REASONS.values(), 0)
        for outcome, reason in _FINISHED_REASONS.items():
            counts[reason] += sum(version.outcomes.get(outcome, 0) for version in statistics)
        for reason, count in counts.items():
            family.add_metric([*labels, reason], count)
    return family
