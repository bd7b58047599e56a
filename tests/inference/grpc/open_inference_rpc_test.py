import numpy as np
import pytest

import keras_deepseek
from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.protocols.tensor_bytes import to_bytes
from tests.inference.conftest import MANAGED, MANAGER

pytest.importorskip("grpc", reason="grpcio is not installed")

SERVICE = "inference.GRPCInferenceService/"


@pytest.fixture
def client(doubler, serve_grpc):
    with ServingEngine(doubler, name="double") as engine:
        client = serve_grpc(engine, **MANAGED)
        client.metadata = MANAGER
        yield client


@pytest.fixture
def ask(client):
    def ask(call, **fields):
        return client.ask(SERVICE + call, **fields)

    return ask


def tensor(*shape, **fields):
    return {"name": "x", "datatype": "FP32", "shape": shape, **fields}


def test_health_and_metadata_are_told(ask, client):
    assert ask("ServerLive").live
    assert ask("ServerReady").ready
    assert ask("ModelReady", name="double").ready
    server = ask("ServerMetadata")
    assert (server.name, server.version) == ("keras_deepseek", keras_deepseek.__version__)
    model = ask("ModelMetadata", name="double", version="1")
    assert (model.name, list(model.versions), model.platform) == ("double", ["1"], "keras_deepseek")
    assert [(spec.name, spec.datatype, list(spec.shape)) for spec in model.inputs] == [
        ("x", "FP32", [-1, 2])
    ]
    client.engine.repository.state = "new"
    assert not ask("ServerReady").ready
    assert not ask("ModelReady", name="double").ready
    assert ask("ServerLive").live
    client.engine.repository.state = "ready"


def test_answers_have_the_form_of_the_question(ask):
    listed = ask(
        "ModelInfer",
        model_name="double",
        id="7",
        inputs=[tensor(1, 2, contents={"fp32_contents": [1, 2]})],
    )
    assert (listed.id, listed.model_name, listed.model_version) == ("7", "double", "1")
    assert list(listed.outputs[0].contents.fp32_contents) == [2, 4]
    raw = ask(
        "ModelInfer",
        model_name="double",
        model_version="1",
        inputs=[tensor(1, 2)],
        raw_input_contents=[to_bytes(np.array([[1, 2]], "float32"))],
    )
    assert raw.raw_output_contents[0] == to_bytes(np.array([[2, 4]], "float32"))


@pytest.mark.parametrize(
    ("call", "fields", "status", "text"),
    [
        ("ModelInfer", {"model_name": "other"}, "NOT_FOUND", "There is no model 'other'"),
        ("ModelInfer", {}, "INVALID_ARGUMENT", "The request names no model."),
        ("ModelInfer", {"model_name": "double"}, "INVALID_ARGUMENT", "missing ['x']"),
        (
            "ModelInfer",
            {"model_name": "double", "model_version": "2"},
            "NOT_FOUND",
            "has no version 2",
        ),
        (
            "ModelInfer",
            {
                "model_name": "double",
                "inputs": [tensor(1, 2, contents={"fp32_contents": [1, 2]})],
                "outputs": [{"name": "z"}],
            },
            "INVALID_ARGUMENT",
            "Unknown output 'z'",
        ),
        ("ModelReady", {"name": "other"}, "NOT_FOUND", "There is no model 'other'"),
        ("ModelReady", {}, "INVALID_ARGUMENT", "The request names no model."),
        ("ModelReady", {"name": "double", "version": "x"}, "INVALID_ARGUMENT", "version 'x'"),
        (
            "ModelMetadata",
            {"name": "double", "version": "9" * 10**6},
            "INVALID_ARGUMENT",
            "Expected a whole number",
        ),
        ("RepositoryModelLoad", {}, "INVALID_ARGUMENT", "expected the name of a model"),
        ("RepositoryModelLoad", {"model_name": "other"}, "NOT_FOUND", "no folder"),
        ("RepositoryModelUnload", {"model_name": "other"}, "NOT_FOUND", "no model 'other'"),
    ],
)
def test_what_can_t_be_answered_is_refused(ask, status_of, call, fields, status, text):
    received_status, message = status_of(ask, call, **fields)
    assert (received_status, text in message) == (status, True), message


def test_its_priority_and_the_shorter_limit_reach_the_engine(ask, client, monkeypatch):
    limits, engine = [], client.engine
    dispatch = engine.dispatch_async

    def note(*arguments, **options):
        limits.append((options["priority"], options["timeout"]))
        return dispatch(*arguments, **options)

    monkeypatch.setattr(engine, "dispatch_async", note)
    for level, microseconds in (({"uint64_param": 1}, 9 * 10**6), ({"int64_param": 2}, 10**9)):
        ask(
            "ModelInfer",
            model_name="double",
            inputs=[tensor(1, 2, contents={"fp32_contents": [1, 2]})],
            parameters={"priority": level, "timeout": {"int64_param": microseconds}},
        )
    assert [priority for priority, _ in limits] == [2**64 - 1, 2**64 - 2]
    # The client of these tests waits about a minute.
    assert limits[0][1] == 9.0
    assert limits[1][1] < 1000


def test_a_failing_model_is_internal_and_not_shown(ask, status_of, caplog):
    inputs = [tensor(1, 2, contents={"fp32_contents": [-1, 2]})]
    code_and_text = status_of(ask, "ModelInfer", model_name="double", inputs=inputs)
    text = "The model failed with ArithmeticError; see the server's log."
    assert code_and_text == ("INTERNAL", text)
    assert "a row starts with -1" in caplog.text


def test_the_repository_lists_loads_and_unloads_models(ask, client):
    index = [
        (version.name, version.version, version.state) for version in ask("RepositoryIndex").models
    ]
    assert index == [("double", "1", "READY")]
    assert ask("RepositoryModelLoad", model_name="double").isLoaded
    assert ask("RepositoryModelUnload", model_name="double").isUnloaded
    assert list(client.engine.models) == []
    assert list(ask("RepositoryIndex").models) == []
