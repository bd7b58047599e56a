import pytest

from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.grpc import health_rpc
from keras_deepseek.inference.protocols.messages import new_message, parse_message

pytest.importorskip("grpc", reason="grpcio is not installed")

SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


@pytest.fixture
def engine(doubler):
    engine = ServingEngine(doubler)
    yield engine
    engine.close()


def check(client, service=""):
    return client.ask("grpc.health.v1.Health/Check", service=service).status


def watch(client, service=""):
    """Returns an iterator of the states that are told."""
    data = new_message("grpc.health.v1.HealthCheckRequest", service=service).SerializeToString()
    call = client.channel.unary_stream("/grpc.health.v1.Health/Watch")(data, timeout=60)
    return (parse_message("grpc.health.v1.HealthCheckResponse", one).status for one in call)


@pytest.mark.parametrize(
    "service", ["", "tensorflow.serving.PredictionService", "inference.GRPCInferenceService"]
)
def test_a_service_serves_when_the_engine_is_ready(engine, serve_grpc, service):
    client = serve_grpc(engine)
    assert check(client, service) == NOT_SERVING
    engine.start()
    assert check(client, service) == SERVING


def test_a_service_that_there_is_not_is_not_found(engine, serve_grpc, status_of):
    assert status_of(check, serve_grpc(engine), "other") == (
        "NOT_FOUND",
        "Unknown service 'other'.",
    )


def test_who_watches_is_told_of_each_change_until_the_server_stops(engine, serve_grpc, monkeypatch):
    monkeypatch.setattr(health_rpc, "_POLL_SECONDS", 0.001)
    client = serve_grpc(engine)
    told = watch(client)
    assert next(told) == NOT_SERVING
    engine.start()
    assert next(told) == SERVING
    client.server.stop()
    assert list(told) == [NOT_SERVING]


def test_who_watches_a_service_that_there_is_not_is_told_so(engine, serve_grpc):
    client = serve_grpc(engine)
    told = watch(client, "other")
    assert next(told) == SERVICE_UNKNOWN
    client.server.stop()
    assert list(told) == []
