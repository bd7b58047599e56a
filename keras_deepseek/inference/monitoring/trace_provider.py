"""Finds where traces go: OpenTelemetry's provider that was set up, or one that `OTEL_*` describes.

`request_traces` writes to it.
"""

import os
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from keras_deepseek.errors import InvalidInputError, MissingExtraError

_EXPORTERS = "opentelemetry_traces_exporter"
"""The entry points by which packages offer exporters."""

_OTLP = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}


def find_provider(traces: Any) -> Any:
    """Returns the `TracerProvider` of OpenTelemetry that spans are made by.

    Args:
        traces: `True`, for the one that the process has set up, or else one of the environment's
            variables; or a `TracerProvider`.

    Raises:
        MissingExtraError: OpenTelemetry is not installed.
        InvalidInputError: `traces` is something else, or a variable names an exporter that there
            is not.
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
    # What stands there until one is set up.
    return _make_provider() if isinstance(provider, trace.ProxyTracerProvider) else provider


@cache
def _make_provider() -> Any:
    """Returns the provider that the variables of the environment describe; servers share it."""
    try:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtraError("opentelemetry-sdk", "telemetry", "to trace requests") from error
    make_exporters = [_find_exporter(name) for name in _exporter_names()]
    # It reads the name of the service, the sampler and the limits itself, the processor the sizes
    # of its batches, and the exporter where to send them.
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
    found = entry_points(group=_EXPORTERS, name=name)
    for one in found:
        return one.load()
    if name in _OTLP.values():
        package = f"opentelemetry-exporter-{name.replace('_', '-')}"
        text = f"Traces would go to a collector: pip install {package!r}, or choose another"
    else:
        text = "Choose another"
    known = sorted(one.name for one in entry_points(group=_EXPORTERS))
    raise InvalidInputError(
        f"There is no exporter {name!r} for traces. {text} by OTEL_TRACES_EXPORTER; there are "
        f"{known}, and 'none'."
    )
