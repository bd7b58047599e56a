"""Writes numbers in Prometheus's text format 0.0.4, and in OpenMetrics 1.0.0.

`metrics` says which numbers; here is only how they are written. `prometheus_client` would hold the
numbers, too: each of its counters and histograms has a lock and looks its labels up.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from keras_deepseek.inference.histogram import HistogramValues

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

Labels = tuple[tuple[str, str], ...]


@dataclass
class Family:
    """Numbers that differ in their labels alone.

    Args:
        name: string. Without the `_total` of a counter.
        kind: string. `"counter"`, `"gauge"` or `"histogram"`.
        help: string. What is counted, in one line.
        samples: list of (labels, value) pairs.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: list[tuple[Labels, float | HistogramValues]] = field(default_factory=list)

    def add(self, value: float | HistogramValues, labels: Mapping[str, str]) -> None:
        """Takes a number.

        Args:
            value: A number, or `HistogramValues` where the family is one of histograms.
            labels: mapping of strings.
        """
        self.samples.append((tuple(labels.items()), value))


def write_metrics(families: Iterable[Family], *, open_metrics: bool = False) -> bytes:
    """Returns the text that is scraped.

    Args:
        families: iterable of `Family`.
        open_metrics: boolean. Whether it is OpenMetrics. Defaults to `False`: Prometheus's own.
    """
    lines: list[str] = []
    for family in families:
        total = f"{family.name}_total" if family.kind == "counter" else family.name
        name = family.name if open_metrics else total
        lines += (f"# HELP {name} {_escape_help(family.help)}", f"# TYPE {name} {family.kind}")
        for labels, value in family.samples:
            if isinstance(value, HistogramValues):
                lines += _histogram_lines(family.name, labels, value)
            else:
                lines.append(f"{total}{_write_labels(labels)} {value!r}")
    if open_metrics:
        lines.append("# EOF")
    return "".join(f"{line}\n" for line in lines).encode()


def _histogram_lines(name: str, labels: Labels, values: HistogramValues) -> list[str]:
    lines, below = [], 0
    for bound, count in zip((*values.bounds, None), values.counts, strict=True):
        below += count
        bound_text = "+Inf" if bound is None else repr(float(bound))
        lines.append(f"{name}_bucket{_write_labels((*labels, ('le', bound_text)))} {below}")
    text = _write_labels(labels)
    return [*lines, f"{name}_sum{text} {values.sum!r}", f"{name}_count{text} {below}"]


def _write_labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape_value(value)}"' for name, value in labels) + "}"


def _escape_value(text: str) -> str:
    return _escape_help(text).replace('"', '\\"')


def _escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")
