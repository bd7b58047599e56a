"""The names of a request in traces, by OpenTelemetry's semantic conventions 1.45.

`http.span_names` and `grpc.span_names` make them; `request_traces` adds the attributes that both
share. https://opentelemetry.io/docs/specs/semconv/
"""

from typing import NamedTuple

SCHEMA = "https://opentelemetry.io/schemas/1.45.0"

Attributes = dict[str, str | int | float | bool]


class SpanNames(NamedTuple):
    """The name and the attributes of a span that depend on the protocol.

    `has_failed` is true if the request failed because of the server.
    """

    name: str
    attributes: Attributes
    has_failed: bool
