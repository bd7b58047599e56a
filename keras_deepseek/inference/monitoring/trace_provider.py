"""The choice of OpenTelemetry's `TracerProvider`: from the user, the process or `OTEL_*`."""

import os
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from keras_deepseek.errors import InvalidInputError, MissingExtraError

_EXPORTERS = "opentelemetry_traces_exporter"
"""The entry point group in which packages register exporters."""

_OTLP = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}


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
