import queue

import pytest

from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.grpc import standard_services
from keras_deepseek.inference.protocols.grpc_messages import new_message, parse_message

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
    return (parse_message("grpc.health.v1.HealthCheckResponse", data).status for data in call)


@pytest.mark.parametrize(
    "service", ["", "tensorflow.serving.PredictionService", "inference.GRPCInferenceService"]
)
def test_a_service_serves_when_the_engine_is_ready(engine, serve_grpc, service):
    client = serve_grpc(engine)
    assert check(client, service) == NOT_SERVING
    engine.start()
    assert check(client, service) == SERVING


def test_a_service_that_there_is_not_is_not_found(engine, serve_grpc, status_of):
    assert status_of(check, serve_grpc(engine), "other")[0] == "NOT_FOUND"


def test_who_watches_is_told_of_each_change_until_the_server_stops(engine, serve_grpc, monkeypatch):
    monkeypatch.setattr(standard_services, "_POLL_SECONDS", 0.001)
    client = serve_grpc(engine)
    statuses = watch(client)
    assert next(statuses) == NOT_SERVING
    engine.start()
    assert next(statuses) == SERVING
    client.server.stop()
    assert list(statuses) == [NOT_SERVING]


def test_who_watches_a_service_that_there_is_not_is_told_so(engine, serve_grpc):
    client = serve_grpc(engine)
    statuses = watch(client, "other")
    assert next(statuses) == SERVICE_UNKNOWN
    client.server.stop()
    assert list(statuses) == []


def test_the_services_and_their_messages_are_described(engine, serve_grpc):
    from google.protobuf.descriptor_pool import DescriptorPool
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
        ProtoReflectionDescriptorDatabase,
    )

    described = ProtoReflectionDescriptorDatabase(serve_grpc(engine).channel)
    assert set(described.get_services()) == {
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
        "tensorflow.serving.ModelService",
        "tensorflow.serving.PredictionService",
    }
    pool = DescriptorPool(described)
    for name in ("grpc.health.v1.Health", "tensorflow.serving.PredictionService"):
        assert pool.FindServiceByName(name).methods
    request = pool.FindMessageTypeByName("tensorflow.serving.PredictRequest")
    assert "inputs" in request.fields_by_name


def test_a_stopping_server_waits_for_no_open_reflection(engine, serve_grpc):
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    client = serve_grpc(engine, grace_seconds=600)
    stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
    questions = queue.Queue()
    questions.put(reflection_pb2.ServerReflectionRequest(list_services=""))
    answers = stub.ServerReflectionInfo(iter(questions.get, None), timeout=600)
    assert next(answers).list_services_response.service
    client.server.stop()
    questions.put(None)
