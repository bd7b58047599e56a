"""How a request is called in traces: OpenTelemetry's semantic conventions 1.45, HTTP's and gRPC's.

`http.span_names` and `grpc.span_names` have the words of each, `request_traces` adds what they
share. https://opentelemetry.io/docs/specs/semconv/
"""

from typing import NamedTuple

SCHEMA = "https://opentelemetry.io/schemas/1.45.0"

Attributes = dict[str, str | int | float | bool]


class SpanNames(NamedTuple):
    """A span's name and attributes, before it is known who answers.

    Args:
        name: string.
        attributes: dict.
        has_failed: boolean. Whether it is the server's fault that there is no answer.
    """

    name: str
    attributes: Attributes
    has_failed: bool
