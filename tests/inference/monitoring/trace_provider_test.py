import sys

import pytest

from keras_deepseek.artifacts import InvalidInputError, MissingExtraError
from keras_deepseek.inference.monitoring import request_traces
from keras_deepseek.inference.monitoring.request_traces import find_provider


@pytest.fixture
def sdk():
    return pytest.importorskip(
        "opentelemetry.sdk.trace", reason="opentelemetry-sdk is not installed"
    )


@pytest.fixture
def exporters(sdk, monkeypatch):
    """Returns the exporters of the provider that these variables describe."""
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", raising=False)
    providers = []

    def exporters(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        request_traces._make_provider.cache_clear()
        provider = find_provider(True)
        assert find_provider(True) is provider  # All servers of a process share it.
        providers.append(provider)
        processors = provider._active_span_processor._span_processors
        return [type(processor.span_exporter).__module__ for processor in processors]

    yield exporters
    request_traces._make_provider.cache_clear()
    for provider in providers:
        provider.shutdown()


def test_a_provider_that_is_given_is_taken(sdk):
    provider = sdk.TracerProvider(shutdown_on_exit=False)
    assert find_provider(provider) is provider


def test_the_one_that_the_process_has_set_up_is_taken(sdk, monkeypatch):
    provider = sdk.TracerProvider(shutdown_on_exit=False)
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: provider)
    assert find_provider(True) is provider


@pytest.mark.parametrize("traces", ["yes", 1, object()])
def test_what_is_no_provider_is_refused(sdk, traces):
    with pytest.raises(InvalidInputError, match="Expected `True`, `False`, or a `TracerProvider`"):
        find_provider(traces)


def test_the_environment_names_exporters(exporters):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    otlp = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    assert exporters() == [otlp]
    assert exporters(OTEL_TRACES_EXPORTER="none") == []
    console = "opentelemetry.sdk.trace.export"
    assert exporters(OTEL_TRACES_EXPORTER="console, otlp") == [console, otlp]
    assert exporters(OTEL_TRACES_EXPORTER="otlp_proto_http") == [otlp]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "jeager"}, r"exporter 'jeager' is not .* to one of \['console'"),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            r"is 'http/json'. Expected one of \['http/protobuf', 'grpc'\]",
        ),
    ],
)
def test_an_exporter_that_there_is_not_is_refused(exporters, variables, message):
    with pytest.raises(InvalidInputError, match=message):
        exporters(**variables)


def test_an_exporter_of_another_package_is_named_with_it(exporters, monkeypatch):
    monkeypatch.setattr(request_traces, "_OTLP", {"grpc": "otlp_proto_other"})
    with pytest.raises(InvalidInputError, match="'opentelemetry-exporter-otlp-proto-other'"):
        exporters(OTEL_EXPORTER_OTLP_TRACES_PROTOCOL="grpc")


def test_the_error_names_the_extra_where_the_api_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    message = r"`opentelemetry-api` is needed .*keras_deepseek\[telemetry\]"
    with pytest.raises(MissingExtraError, match=message):
        find_provider(True)


def test_the_error_names_the_extra_where_the_sdk_is_missing(exporters, monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    message = r"`opentelemetry-sdk` is needed .*keras_deepseek\[telemetry\]"
    with pytest.raises(MissingExtraError, match=message):
        exporters()
