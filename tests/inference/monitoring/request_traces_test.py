import contextlib
import http.client
import http.server
import importlib
import logging
import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

from keras_deepseek.inference import HttpServer, ServingEngine
from keras_deepseek.inference.grpc.answers import name_grpc
from keras_deepseek.inference.http.http_application import name_spans
from keras_deepseek.inference.http.message import HttpRequest
from keras_deepseek.inference.monitoring import request_traces
from keras_deepseek.inference.monitoring.request_trace import RequestTrace
from keras_deepseek.inference.monitoring.request_traces import RequestTraces, SpanNames
from keras_deepseek.inference.protocols.grpc_messages import new_message
from tests.inference.conftest import service_of

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="opentelemetry-sdk is not installed")
export = pytest.importorskip("opentelemetry.sdk.trace.export")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
sampling = pytest.importorskip("opentelemetry.sdk.trace.sampling")
trace_api = pytest.importorskip("opentelemetry.trace")

TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C
PARENT = 0xB7AD6B7169203331
TRACEPARENT = f"00-{TRACE_ID:032x}-{PARENT:016x}-01"
PREDICT = "/v1/models/double:predict"
BODY = b'{"instances": [[1, 2], [3, 4]]}'


@pytest.fixture
def exporter():
    return memory.InMemorySpanExporter()


@pytest.fixture
def make_provider():
    """Returns providers that are shut down at the end."""
    with contextlib.ExitStack() as stack:

        def make(exporter, **options):
            provider = sdk.TracerProvider(shutdown_on_exit=False, **options)
            provider.add_span_processor(export.SimpleSpanProcessor(exporter))
            stack.callback(provider.shutdown)
            return provider

        yield make


@pytest.fixture
def provider(make_provider, exporter):
    return make_provider(exporter)


@pytest.fixture
def engine(doubler):
    with ServingEngine(doubler, name="double", cache_entries=4) as engine:
        yield engine


def ask(server, method="POST", path=PREDICT, body=BODY, **headers):
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, names)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


@pytest.fixture
def serve_http(engine):
    pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    servers = []

    def serve(traces):
        servers.append(HttpServer(service_of(engine, traces=traces)))
        servers[-1].start()
        return servers[-1]

    yield serve
    for server in servers:
        server.stop()


def test_a_request_over_http_is_a_span_of_the_client_s_trace(serve_http, provider, exporter):
    server = serve_http(provider)
    assert ask(server, traceparent=TRACEPARENT, tracestate="a=b", user_agent="me") == 200
    server.stop()
    queue, model, root = exporter.get_finished_spans()
    assert (root.name, root.kind.name) == ("POST /v1/models/{name}:predict", "SERVER")
    assert dict(root.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/models/{name}:predict",
        "http.response.status_code": 200,
        "url.path": PREDICT,
        "url.scheme": "http",
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "client.address": "127.0.0.1",
        "network.protocol.version": "1.1",
        "user_agent.original": "me",
        "keras_deepseek.protocol": "tf_serving",
        "keras_deepseek.call": "predict",
        "keras_deepseek.model": "double",
        "keras_deepseek.version": "1",
        "keras_deepseek.rows": 2,
        "keras_deepseek.cached": False,
    }
    assert (root.parent.span_id, root.context.trace_id) == (PARENT, TRACE_ID)
    assert root.context.trace_state.get("a") == "b"
    assert root.status.is_unset
    assert root.instrumentation_scope.schema_url == "https://opentelemetry.io/schemas/1.45.0"
    assert [(span.name, span.parent.span_id) for span in (queue, model)] == [
        ("queue", root.context.span_id),
        ("model", root.context.span_id),
    ]
    assert {span.context.trace_id for span in (queue, model)} == {TRACE_ID}
    assert dict(model.attributes) == {
        "keras_deepseek.batch.rows": 2,
        "keras_deepseek.batch.padded_rows": 0,
        "keras_deepseek.batch.reason": "idle",
    }
    times = (root.start_time, queue.start_time, queue.end_time, model.end_time, root.end_time)
    assert list(times) == sorted(times)
    assert model.start_time == queue.end_time


def test_without_a_parent_it_is_a_trace_of_its_own(serve_http, provider, exporter):
    server = serve_http(provider)
    for traceparent in ("", "00-nonsense-01", f"00-{0:032x}-{PARENT:016x}-01", "0" * 9000):
        assert ask(server, traceparent=traceparent) == 200
    server.stop()
    roots = [span for span in exporter.get_finished_spans() if span.kind.name == "SERVER"]
    assert [root.parent for root in roots] == [None] * 4
    assert len({root.context.trace_id for root in roots}) == 4


def test_how_a_request_ends_is_told(serve_http, provider, exporter):
    server = serve_http(provider)
    assert ask(server, body=b"{}") == 400
    assert ask(server, path="/v1/models/made-up:predict") == 404
    assert ask(server, "GET", "/nowhere/made-up", None) == 404
    assert ask(server, body=b'{"instances": [[-1, 0]]}') == 500
    assert ask(server, "GET", "/healthz", None) == 200
    server.stop()
    roots = [span for span in exporter.get_finished_spans() if span.kind.name == "SERVER"]
    assert [root.name for root in roots] == [
        "POST /v1/models/{name}:predict",
        "POST /v1/models/{name}:predict",
        "GET",
        "POST /v1/models/{name}:predict",
        "GET /healthz",
    ]
    assert [root.status.status_code.name for root in roots] == [
        "UNSET", "UNSET", "UNSET", "ERROR", "UNSET",
    ]  # fmt: skip
    assert [root.attributes.get("error.type") for root in roots] == [None] * 3 + ["500", None]
    models = [root.attributes.get("keras_deepseek.model") for root in roots]
    assert models == ["double", None, None, "double", None]


def test_an_answer_that_was_kept_ran_through_no_model(serve_http, provider, exporter):
    server = serve_http(provider)
    assert [ask(server), ask(server)] == [200, 200]
    server.stop()
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans[2:]] == ["POST /v1/models/{name}:predict"] * 2
    assert spans[3].attributes["keras_deepseek.cached"] is True


def test_what_no_sample_has_is_not_made(serve_http, make_provider, exporter):
    sampler = sampling.ParentBased(sampling.ALWAYS_OFF)
    server = serve_http(make_provider(exporter, sampler=sampler))
    assert ask(server) == 200
    assert ask(server, traceparent=TRACEPARENT) == 200  # The client has sampled it.
    assert ask(server, traceparent=TRACEPARENT[:-1] + "0") == 200
    server.stop()
    assert {span.context.trace_id for span in exporter.get_finished_spans()} == {TRACE_ID}
    assert sum(span.kind.name == "SERVER" for span in exporter.get_finished_spans()) == 1


INFER = "/inference.GRPCInferenceService/ModelInfer"


def infer_message(value, name="double", number=""):
    message = new_message("inference.ModelInferRequest", model_name=name, id=number)
    tensor = message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    tensor.contents.fp32_contents.extend([value, value])
    return message.SerializeToString()


def test_a_request_over_grpc_is_a_span_of_the_client_s_trace(
    engine, serve_grpc, provider, exporter
):
    grpc = pytest.importorskip("grpc")
    client = serve_grpc(engine, traces=provider)
    infer = client.channel.unary_unary(INFER)
    metadata = (("traceparent", TRACEPARENT), ("x-bin", b"\0"))
    assert infer(infer_message(1), metadata=metadata, timeout=60)
    for value, name, status in ((1, "other", "NOT_FOUND"), (-1, "double", "INTERNAL")):
        with pytest.raises(grpc.RpcError) as caught:
            infer(infer_message(value, name), timeout=60)
        assert caught.value.code().name == status
    client.close()
    client.server.stop()
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans[:3]] == ["queue", "model", INFER[1:]]
    root, refused, failed = [span for span in spans if span.kind.name == "SERVER"]
    assert dict(root.attributes) == {
        "rpc.system.name": "grpc",
        "rpc.method": "inference.GRPCInferenceService/ModelInfer",
        "rpc.response.status_code": "OK",
        "server.address": "127.0.0.1",
        "server.port": client.server.port,
        "client.address": "127.0.0.1",
        "keras_deepseek.protocol": "open_inference_grpc",
        "keras_deepseek.call": "ModelInfer",
        "keras_deepseek.model": "double",
        "keras_deepseek.version": "1",
        "keras_deepseek.rows": 1,
        "keras_deepseek.cached": False,
    }
    assert (root.parent.span_id, root.context.trace_id) == (PARENT, TRACE_ID)
    assert (refused.status.status_code.name, refused.attributes.get("error.type")) == (
        "UNSET",
        None,
    )
    assert (failed.status.status_code.name, failed.attributes["error.type"]) == (
        "ERROR",
        "INTERNAL",
    )


def test_each_request_of_a_stream_is_a_span_of_the_stream_s_trace(
    engine, serve_grpc, provider, exporter
):
    client = serve_grpc(engine, traces=provider)
    stream = client.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    messages = [infer_message(1), infer_message(2, "other"), infer_message(3)]
    answers = stream(iter(messages), metadata=(("traceparent", TRACEPARENT),), timeout=60)
    assert len(list(answers)) == 3
    client.close()
    client.server.stop()
    roots = [span for span in exporter.get_finished_spans() if span.kind.name == "SERVER"]
    statuses = [root.attributes["rpc.response.status_code"] for root in roots]
    assert statuses == ["OK", "NOT_FOUND", "OK"]
    assert {(root.parent.span_id, root.context.trace_id) for root in roots} == {(PARENT, TRACE_ID)}


def test_a_request_whose_client_is_gone_is_a_span_too(
    doubler, serve_grpc, provider, exporter, monkeypatch
):
    pytest.importorskip("uvicorn")
    with ServingEngine(doubler, name="double", warm_up=False) as engine:
        gone = threading.Semaphore(0)
        end = engine.monitor.end

        def end_and_tell(trace, status):
            gone.release()
            return end(trace, status)

        monkeypatch.setattr(engine.monitor, "end", end_and_tell)
        server = HttpServer(service_of(engine, traces=provider))
        server.start()
        client = serve_grpc(engine, traces=provider)
        doubler.hold()
        call = client.channel.unary_unary(INFER).future(infer_message(1), timeout=60)
        assert doubler.entered.wait(60)
        connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
        connection.request("POST", PREDICT, BODY)
        call.cancel()
        assert gone.acquire(timeout=60)
        connection.close()
        assert gone.acquire(timeout=60)
        client.close()
        client.server.stop()
        server.stop()
        doubler.release()
    # Neither has run to its end, and two servers may finish them in any order.
    cancelled, disconnected = sorted(
        exporter.get_finished_spans(), key=lambda span: "http.request.method" in span.attributes
    )
    assert cancelled.attributes["rpc.response.status_code"] == "CANCELLED"
    assert cancelled.status.is_unset
    assert disconnected.attributes["error.type"] == "client_hung_up"
    assert disconnected.name == "POST /v1/models/{name}:predict"


class Failing(export.SpanExporter):
    def export(self, spans):
        raise ConnectionError("no collector")


class Hanging(export.SpanExporter):
    def __init__(self):
        self.entered, self.gate = threading.Event(), threading.Event()

    def export(self, spans):
        self.entered.set()
        assert self.gate.wait(60)
        return export.SpanExportResult.SUCCESS


def test_an_exporter_that_fails_harms_no_request(serve_http, make_provider, caplog):
    server = serve_http(make_provider(Failing()))
    assert [ask(server) for _ in range(3)] == [200] * 3
    server.stop()
    assert "no collector" in caplog.text  # OpenTelemetry's own words.


def test_an_exporter_that_hangs_harms_no_request(serve_http, make_provider, monkeypatch, caplog):
    monkeypatch.setattr(request_traces, "MAX_WAITING", 5)
    exporter = Hanging()
    server = serve_http(make_provider(exporter))
    assert ask(server) == 200
    assert exporter.entered.wait(60)
    assert [ask(server) for _ in range(12)] == [200] * 12
    exporter.gate.set()
    server.stop()
    (record,) = [record for record in caplog.records if record.name == request_traces.__name__]
    assert record.getMessage().startswith("Dropped the traces of 7 requests")


class BrokenProcessor(sdk.SpanProcessor):
    def on_start(self, span, parent_context=None):
        if span.name == "bad":
            raise ArithmeticError


def test_a_processor_that_fails_takes_no_other_span_with_it(provider, exporter, caplog):
    provider.add_span_processor(BrokenProcessor())
    traces = RequestTraces(provider)
    with caplog.at_level(logging.ERROR):
        for name in ("bad", "good", "bad", "better"):
            traces.add(RequestTrace("http", "x"), 0.1, SpanNames(name, {}, False), {})
        traces.close()
    assert [span.name for span in exporter.get_finished_spans()] == ["good", "better"]
    assert len(caplog.records) == 1


def test_nothing_is_traced_that_was_not_asked_for(serve_http):
    assert serve_http(False).service.traces is None


class Collector(http.server.BaseHTTPRequestHandler):
    """What OpenTelemetry's collector does with what comes by OTLP over HTTP."""

    def do_POST(self):
        service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers["content-encoding"] is None and self.path == "/v1/traces":
            self.server.received.append(service.ExportTraceServiceRequest.FromString(body))
        answer = service.ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def collector():
    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        server.received = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


SCRIPT = """
import http.client, sys
import grpc
from keras_deepseek.inference import ServingEngine
from tests.inference.conftest import Doubler, service_of
from tests.inference.monitoring.request_traces_test import BODY, INFER, PREDICT, TRACEPARENT
from tests.inference.monitoring.request_traces_test import infer_message

engine = ServingEngine(Doubler(), name="double")
server = engine.serve(0, 0, traces=True)
connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
connection.request("POST", PREDICT, BODY, {"traceparent": TRACEPARENT})
assert connection.getresponse().status == 200
with grpc.insecure_channel(engine.servers[1].target) as channel:
    infer = channel.unary_unary(INFER)
    assert infer(infer_message(1), metadata=(("traceparent", TRACEPARENT),), timeout=60)
engine.close()
"""


def test_a_collector_that_the_environment_names_gets_the_spans(collector):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    pytest.importorskip("uvicorn")
    pytest.importorskip("grpc")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
        "OTEL_SERVICE_NAME": "digits",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
    call = [sys.executable, "-c", SCRIPT]
    process = subprocess.run(
        call, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert (process.returncode, process.stderr) == (0, "")
    (resource,) = [spans for request in collector.received for spans in request.resource_spans]
    names = {
        attribute.key: attribute.value.string_value for attribute in resource.resource.attributes
    }
    assert names["service.name"] == "digits"
    (scope,) = resource.scope_spans
    assert (scope.scope.name, scope.schema_url[-6:]) == ("keras_deepseek", "1.45.0")
    assert sorted(span.name for span in scope.spans) == sorted(
        ["POST /v1/models/{name}:predict", INFER[1:], *["queue", "model"] * 2]
    )
    assert {span.trace_id.hex() for span in scope.spans} == {f"{TRACE_ID:032x}"}


SERVICE = types.SimpleNamespace(address=("::1", 8501))


def conventions():
    """Returns the names of attributes in OpenTelemetry's own package of them."""
    names = ("client", "error", "http", "network", "server", "url", "user_agent")
    modules = [f"attributes.{name}_attributes" for name in names]
    return {
        value
        for module in (*modules, "_incubating.attributes.rpc_attributes")
        for value in vars(importlib.import_module(f"opentelemetry.semconv.{module}")).values()
        if isinstance(value, str)
    }


def test_the_names_are_those_of_the_conventions():
    pytest.importorskip("opentelemetry.semconv", reason="opentelemetry-sdk is not installed")
    request = HttpRequest("PURGE", "/made-up", {"user-agent": "me"}, server=("::1", 80), route="/a")
    used = {
        *name_spans(request, 500).attributes,
        *name_spans(request, 499).attributes,
        *name_grpc(SERVICE, "/a/b", "INTERNAL", "::1").attributes,
    }
    assert len(used) == 15
    assert used - conventions() == set()
