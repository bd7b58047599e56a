"""OpenTelemetry spans of requests: one for each request, with child spans for queue and model.

The thread of `BackgroundWriter` makes the spans after a request has ended. By then all attributes
that a sampler may read are known, and a slow sampler or exporter delays no request.
"""

import logging
import os
import time
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from keras_deepseek import __version__
from keras_deepseek.errors import InvalidInputError, MissingExtraError
from keras_deepseek.inference.monitoring.background_writer import BackgroundWriter
from keras_deepseek.inference.monitoring.request_trace import RequestTrace

SCHEMA = "https://opentelemetry.io/schemas/1.45.0"
"""The names of spans and attributes are those of OpenTelemetry's semantic conventions 1.45.

`http.span_names` and `grpc.call_records` make them. https://opentelemetry.io/docs/specs/semconv/
"""

MAX_WAITING = 2048
"""The number of requests that may wait, as in OpenTelemetry's own processor. More are dropped."""

_MAX_FIELD = 8192
"""The largest number of characters of a trace header: the limit that W3C sets for baggage."""

_PREFIX = "keras_deepseek."
_NANOSECONDS = 1e9

_logger = logging.getLogger(__name__)

Attributes = dict[str, str | int | float | bool]

_EXPORTERS = "opentelemetry_traces_exporter"
"""The entry point group in which packages register exporters."""

_OTLP = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}


class SpanNames(NamedTuple):
    """The name and the attributes of a span that depend on the protocol.

    `has_failed` is true if the request failed because of the server.
    """

    name: str
    attributes: Attributes
    has_failed: bool


class _Batch(NamedTuple):
    """The times of a request's batch, in nanoseconds since 1970."""

    arrived: int
    started: int
    done: int
    attributes: Attributes


class _Ended(NamedTuple):
    """An ended request. `fields` are the client's trace headers; times are as in `_Batch`."""

    names: SpanNames
    fields: dict[str, str]
    start: int
    end: int
    batch: _Batch | None


class RequestTraces:
    """Makes spans of requests, by the argument `traces` of `HttpServer`."""

    def __init__(self, traces: Any = True) -> None:
        provider = find_provider(traces)
        from opentelemetry import propagate

        self._tracer = provider.get_tracer("keras_deepseek", __version__, schema_url=SCHEMA)
        self._propagator = propagate.get_global_textmap()
        self.fields = frozenset(self._propagator.fields)
        """The lower-case names of the headers that carry the client's trace."""
        self._has_warned = False
        self._writer = BackgroundWriter(self._write, name="traces", max_waiting=MAX_WAITING)

    def add(
        self, trace: RequestTrace, seconds: float, names: SpanNames, headers: Mapping[str, str]
    ) -> None:
        """Makes the span of an ended request, later and on another thread. Never blocks.

        `headers` are HTTP headers or gRPC metadata, by lower-case name.
        """
        end = time.time_ns()
        start = end - int(_NANOSECONDS * seconds)
        request, batch = trace.request, None
        names.attributes[f"{_PREFIX}protocol"] = trace.protocol
        names.attributes[f"{_PREFIX}call"] = trace.call
        if trace.model:
            names.attributes[f"{_PREFIX}model"] = trace.model
        if trace.version:
            names.attributes[f"{_PREFIX}version"] = trace.version
        if request is not None:
            names.attributes[f"{_PREFIX}rows"] = request.rows
            names.attributes[f"{_PREFIX}cached"] = request.is_cached
            decision = request.decision
            if decision is not None:
                # Times of the batch are of a monotonic clock: only their differences count.
                batch_started = start + int(_NANOSECONDS * (decision.started - trace.started))
                batch = _Batch(
                    start + int(_NANOSECONDS * (request.arrived - trace.started)),
                    batch_started,
                    batch_started + int(_NANOSECONDS * decision.seconds),
                    {
                        f"{_PREFIX}batch.rows": decision.rows,
                        f"{_PREFIX}batch.padded_rows": decision.padded_rows,
                        f"{_PREFIX}batch.reason": decision.reason,
                    },
                )
        fields = {
            name: headers[name]
            for name in self.fields
            if name in headers and len(headers[name]) <= _MAX_FIELD
        }
        self._writer.put(_Ended(names, fields, start, end, batch))

    def flush(self) -> None:
        """Waits until the spans of all ended requests are made, or for one second."""
        self._writer.flush()

    def close(self) -> None:
        """Makes the waiting spans and ends the thread. Gives up after one second."""
        self._writer.close()

    def _write(self, ended: list[_Ended], dropped: int) -> None:
        if dropped and not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "Dropped the traces of %d requests, because spans are made too slowly. This is "
                "logged once.",
                dropped,
            )
        error: Exception | None = None
        for request in ended:
            try:
                self._write_span(request)
            # A span processor of the user may fail for one span; the others are still written.
            except Exception as caught:  # noqa: BLE001 - It is raised below.
                error = caught
        if error is not None:
            raise error

    def _write_span(self, ended: _Ended) -> None:
        from opentelemetry import trace
        from opentelemetry.context import Context

        parent = Context()
        if ended.fields:
            parent = self._propagator.extract(ended.fields, context=parent)
        span = self._tracer.start_span(
            ended.names.name,
            context=parent,
            kind=trace.SpanKind.SERVER,
            attributes=ended.names.attributes,
            start_time=ended.start,
        )
        if not span.is_recording():  # The sampler has left it out.
            return
        if ended.batch is not None:
            self._write_batch(trace.set_span_in_context(span, parent), ended.batch)
        if ended.names.has_failed:
            span.set_status(trace.Status(trace.StatusCode.ERROR))
        span.end(ended.end)

    def _write_batch(self, parent: Any, batch: _Batch) -> None:
        queue = self._tracer.start_span("queue", context=parent, start_time=batch.arrived)
        queue.end(batch.started)
        model = self._tracer.start_span(
            "model", context=parent, attributes=batch.attributes, start_time=batch.started
        )
        model.end(batch.done)


def find_provider(traces: Any) -> Any:
    """Returns the `TracerProvider` that makes the spans.

    `True` stands for the one that the process has set up, and if there is none, for a new one that
    the environment variables `OTEL_*` describe.
    """
    try:
        from opentelemetry import trace
    except ImportError as error:
        raise MissingExtraError("opentelemetry-api", "telemetry", "to trace requests") from error
    if traces is not True:
        if not hasattr(traces, "get_tracer"):
            raise InvalidInputError(
                f"Received traces={traces!r}. Expected `True`, `False`, or a `TracerProvider`."
            )
        return traces
    provider = trace.get_tracer_provider()
    # OpenTelemetry returns a proxy until a provider is set.
    return _make_provider() if isinstance(provider, trace.ProxyTracerProvider) else provider


@cache
def _make_provider() -> Any:
    """Returns the provider that the environment variables describe. All servers share it."""
    try:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtraError("opentelemetry-sdk", "telemetry", "to trace requests") from error
    make_exporters = [_find_exporter(name) for name in _exporter_names()]
    # The provider reads the service name, the sampler and the limits from the environment, the
    # processor its batch sizes, and the exporter its endpoint.
    provider = TracerProvider()
    for make_exporter in make_exporters:
        provider.add_span_processor(BatchSpanProcessor(make_exporter()))
    return provider


def _exporter_names() -> list[str]:
    names = os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    return [
        _otlp_name() if name == "otlp" else name
        for name in (part.strip() for part in names.split(","))
        if name and name != "none"
    ]


def _otlp_name() -> str:
    protocol = (
        os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "http/protobuf"
    )
    if protocol not in _OTLP:
        raise InvalidInputError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}. Expected one of {list(_OTLP)}."
        )
    return _OTLP[protocol]


def _find_exporter(name: str) -> Any:
    exporters = entry_points(group=_EXPORTERS, name=name)
    for exporter in exporters:
        return exporter.load()
    if name in _OTLP.values():
        package = f"opentelemetry-exporter-{name.replace('_', '-')}"
        hint = f"Install it with: pip install {package!r}, or set"
    else:
        hint = "Set"
    installed = sorted(exporter.name for exporter in entry_points(group=_EXPORTERS))
    raise InvalidInputError(
        f"The trace exporter {name!r} is not installed. {hint} OTEL_TRACES_EXPORTER to one of "
        f"{[*installed, 'none']}."
    )
