"""OpenTelemetry spans of requests: one for each request, with child spans for queue and model.

The thread of `BackgroundWriter` makes the spans after a request has ended. By then all attributes
that a sampler may read are known, and a slow sampler or exporter delays no request.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from keras_deepseek import __version__
from keras_deepseek.inference.monitoring.background_writer import BackgroundWriter
from keras_deepseek.inference.monitoring.request_trace import RequestTrace
from keras_deepseek.inference.monitoring.trace_provider import find_provider

SCHEMA = "https://opentelemetry.io/schemas/1.45.0"
"""The names of spans and attributes are those of OpenTelemetry's semantic conventions 1.45.

`http.span_names` and `grpc.call_records` make them. https://opentelemetry.io/docs/specs/semconv/
"""

MAX_WAITING = 2048
"""The number of requests that may wait, as in OpenTelemetry's own processor. More are dropped."""

_MAX_FIELD = 8192
"""The largest number of characters of a trace header: the limit that W3C sets for baggage."""

_PREFIX = "keras_deepseek."

_logger = logging.getLogger(__name__)

Attributes = dict[str, str | int | float | bool]


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
        """Adds an ended request, for which a span is made. Never blocks.

        `headers` are HTTP headers or gRPC metadata, by lower-case name.
        """
        end = time.time_ns()
        start = end - int(1e9 * seconds)
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
                batch_started = start + int(1e9 * (decision.started - trace.started))
                batch = _Batch(
                    start + int(1e9 * (request.arrived - trace.started)),
                    batch_started,
                    batch_started + int(1e9 * decision.seconds),
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
