import shutil

import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference import ServingEngine
from tests.inference.conftest import MANAGED, MANAGER

pytest.importorskip("grpc", reason="grpcio is not installed")

SERVICE = "tensorflow.serving.ModelService/"
AVAILABLE, UNLOADING, END = 30, 40, 50


@pytest.fixture
def client(doubler, serve_grpc):
    with ServingEngine(doubler, name="double") as engine:
        client = serve_grpc(engine, **MANAGED)
        client.metadata = MANAGER
        yield client


def status(client, **fields):
    answer = client.ask(SERVICE + "GetModelStatus", model_spec=fields)
    return [
        (version_status.version, version_status.state)
        for version_status in answer.model_version_status
    ]


def reload_config(client, *models):
    config = {"model_config_list": {"config": models}}
    return client.ask(SERVICE + "HandleReloadConfigRequest", config=config)


def test_the_state_of_one_version_or_of_all_is_told(client, doubler):
    engine = client.engine
    engine.load(doubler, keep=None)
    engine.models["double"].set_labels({"stable": 1})
    assert status(client, name="double") == [(2, AVAILABLE), (1, AVAILABLE)]
    assert len(status(client, name="double", version={"value": 0})) == 2  # As OpenVINO's client.
    assert status(client, name="double", version={"value": 1}) == [(1, AVAILABLE)]
    assert status(client, name="double", version_label="stable") == [(1, AVAILABLE)]
    engine.repository.state = "closed"
    assert status(client, name="double", version={"value": 1}) == [(1, UNLOADING)]
    engine.repository.state = "ready"


def test_a_version_that_failed_is_at_its_end_and_why_is_not_shown(client, doubler, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(doubler, "run", lambda inputs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            client.engine.load(doubler)
    with pytest.raises(InvalidInputError):
        client.engine.load("/nowhere")
    assert status(client, name="double", version={"value": 3}) == [(3, END)]
    answer = client.ask(SERVICE + "GetModelStatus", model_spec={"name": "double"})
    failed = answer.model_version_status[1]
    assert (failed.version, failed.state) == (2, END)
    assert failed.status.error_message == "It failed with ZeroDivisionError; see the server's log."


@pytest.mark.parametrize(
    ("fields", "code", "text"),
    [
        ({"name": "other"}, "NOT_FOUND", "Could not find any versions of model other"),
        (
            {"name": "double", "version": {"value": 7}},
            "NOT_FOUND",
            "Could not find version 7 of model double",
        ),
        (
            {"name": "double", "version_label": "new"},
            "INVALID_ARGUMENT",
            "Unrecognized servable version label: new. The model 'double' has no label 'new'",
        ),
        ({}, "INVALID_ARGUMENT", "ModelSpec has no name specified."),
    ],
)
def test_what_is_not_served_is_told_in_tf_serving_s_words(client, status_of, fields, code, text):
    received_code, message = status_of(status, client, **fields)
    assert (received_code, message.startswith(text)) == (code, True)


def test_a_config_replaces_all_models_or_nothing(client, status_of, bundle_of, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    shutil.copytree(bundle_of("onnx").path, tmp_path / "one" / "5")
    good = {"name": "one", "base_path": str(tmp_path / "one"), "version_labels": {"stable": 5}}
    bad = {"name": "two", "base_path": str(tmp_path / "nothing")}
    code, text = status_of(reload_config, client, good, bad)
    assert (code, "holds none of the versions to serve" in text) == ("INVALID_ARGUMENT", True)
    assert status(client, name="double") == [(1, AVAILABLE)]
    assert reload_config(client, good).status.error_code == 0
    assert status(client, name="one", version_label="stable") == [(5, AVAILABLE)]
    assert status_of(status, client, name="double")[0] == "NOT_FOUND"
    (tmp_path / "one" / "5" / "model.onnx").write_bytes(b"nothing")
    again = {**good, "name": "again"}
    text = "The model 'again' could not be loaded; see the server's log."
    assert status_of(reload_config, client, again) == ("INTERNAL", text)
    assert status(client, name="one") == [(5, AVAILABLE)]


def test_an_engine_that_is_not_ready_takes_no_config(client, status_of):
    client.engine.repository.state = "new"
    code_and_text = status_of(reload_config, client, {"name": "one", "base_path": "one"})
    client.engine.repository.state = "ready"
    assert code_and_text[0] == "UNAVAILABLE"


def test_models_are_replaced_only_for_a_management_token(client, doubler, serve_grpc, status_of):
    client.metadata = (("authorization", "Bearer other"),)
    code, text = status_of(reload_config, client)
    assert (code, "management token" in text) == ("PERMISSION_DENIED", True)
    with ServingEngine(doubler) as engine:
        code, text = status_of(reload_config, serve_grpc(engine))
    assert (code, "--model-control explicit" in text) == ("PERMISSION_DENIED", True)
