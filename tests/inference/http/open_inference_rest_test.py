import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import keras_deepseek
from keras_deepseek.inference import ModelOptions, ServingEngine
from keras_deepseek.inference.errors import LoadFailedError
from keras_deepseek.inference.models.model_repository import ModelRepository
from tests.inference.conftest import MANAGED, MANAGER, Doubler
from tests.oracles.rest_client import RestClient

pytest.importorskip("uvicorn")


@pytest.fixture
def engine():
    with ServingEngine(Doubler(), name="double", version=3, warm_up=False) as engine:
        yield engine


@pytest.fixture
def client(engine):
    client = RestClient(engine.serve(0, **MANAGED), **dict(MANAGER))
    yield client
    client.close()


def request_of(values, **options):
    x = {"name": "x", "shape": [len(values), 2], "datatype": "FP32", "data": values}
    return {"inputs": [x], **options}


def test_outputs_come_as_json_with_the_request_s_id(client):
    answer = client.ask("POST", "/v2/models/double/infer", request_of([[1, 2]], id="7"))
    assert answer.content == {
        "model_name": "double",
        "model_version": "3",
        "id": "7",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [2.0, 4.0]}],
    }


def test_tensors_go_and_come_as_raw_bytes(client):
    x = np.array([[1, 2], [3, 4]], "float32")
    tensor = {"name": "x", "shape": [2, 2], "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": x.nbytes}
    outputs = [{"name": "y", "parameters": {"binary_data": True}}]
    text = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    answer = client.ask("POST", "/v2/models/double/versions/3/infer", text + x.tobytes(), headers)
    length = int(answer.headers["Inference-Header-Content-Length"])
    (output,) = json.loads(answer.body[:length])["outputs"]
    assert output["parameters"] == {"binary_data_size": x.nbytes}
    y = np.frombuffer(answer.body[length:], "float32").reshape(output["shape"])
    np.testing.assert_array_equal(y, 2 * x)


def test_its_priority_and_its_timeout_reach_the_engine(client, engine, monkeypatch):
    limits, dispatch = [], engine.dispatch

    def note(*arguments, **options):
        limits.append((options["priority"], options["timeout"]))
        return dispatch(*arguments, **options)

    monkeypatch.setattr(engine, "dispatch", note)
    for parameters in ({"priority": 1, "timeout": 50_000_000}, {"priority": 2}, {"other": "x"}):
        body = request_of([[1, 2]], parameters=parameters)
        assert client.ask("POST", "/v2/models/double/infer", body).status == 200
    assert limits == [(2**64 - 1, 50.0), (2**64 - 2, None), (0, None)]


def test_one_that_is_late_is_told_so(client):
    body = request_of([[1, 2]], parameters={"timeout": 1})
    answer = client.ask("POST", "/v2/models/double/infer", body)
    assert answer.status in (429, 504)  # It may be foreseen.
    body = request_of([[1, 2]], parameters={"timeout": "soon"})
    answer = client.ask("POST", "/v2/models/double/infer", body)
    assert (answer.status, "'timeout' must be" in answer.content["error"]) == (400, True)


def test_server_and_model_tell_what_they_are(client):
    assert client.ask("GET", "/v2").content == {
        "name": "keras_deepseek",
        "version": keras_deepseek.__version__,
        "extensions": ["binary_tensor_data", "classification", "model_repository"],
    }
    content = client.ask("GET", "/v2/models/double").content
    assert (content["name"], content["versions"]) == ("double", ["3"])
    assert content["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]


def test_health_is_told_of_the_server_and_of_each_model(client, engine):
    assert client.ask("GET", "/v2/health/live").content == {"live": True}
    assert client.ask("GET", "/v2/health/ready").content == {"ready": True}
    assert client.ask("GET", "/v2/models/double/ready").content == {"name": "double", "ready": True}
    engine.find().state = "UNLOADING"
    answer = client.ask("GET", "/v2/models/double/versions/3/ready")
    assert (answer.status, answer.content["ready"]) == (503, False)
    engine.find().state = "AVAILABLE"


def test_the_repository_s_index_has_every_version(client, engine):
    class Broken(Doubler):
        def run(self, inputs):
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        engine.load(Broken(), options=ModelOptions())
    index = client.ask("POST", "/v2/repository/index").content
    assert [(version["name"], version["version"], version["state"]) for version in index] == [
        ("double", "3", "READY"),
        ("double", "4", "UNAVAILABLE"),
    ]
    assert len(client.ask("POST", "/v2/repository/index", {"ready": True}).content) == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("double/infer", {}, 400, "'inputs'"),
        ("double/infer", request_of([[1, 2, 3]]), 400, "x"),
        ("double/infer", request_of([[1, 2]], outputs=[{"name": "z"}]), 400, "'z'"),
        ("other/infer", request_of([[1, 2]]), 404, "no model 'other'"),
        ("double/versions/9/infer", request_of([[1, 2]]), 404, "no version 9"),
        ("double/versions/x/infer", request_of([[1, 2]]), 404, "version 'x'"),
    ],
)
def test_what_does_not_fit_is_refused_and_not_run(client, engine, path, body, status, message):
    answer = client.ask("POST", f"/v2/models/{path}", body)
    assert answer.status == status
    assert message in answer.content["error"]
    assert engine.statistics().batches == 0


def test_a_model_is_unloaded_and_loaded_again(client, engine, bundle_of, tmp_path):
    pytest.importorskip("onnxruntime")
    shutil.copytree(bundle_of("onnx").path, tmp_path / "folder" / "1")
    engine.follow(tmp_path / "folder", name="followed")
    infer = ("POST", "/v2/models/followed/infer", request_of([[1, 2]]))
    assert client.ask(*infer).status == 200
    answer = client.ask("POST", "/v2/repository/models/followed/unload")
    assert (answer.status, answer.content) == (200, {"name": "followed", "unload": True})
    assert client.ask(*infer).status == 404
    answer = client.ask("POST", "/v2/repository/models/followed/load", {"parameters": {}})
    assert (answer.status, answer.content) == (200, {"name": "followed", "load": True})
    assert client.ask(*infer).status == 200


def test_others_are_answered_while_a_model_is_loaded(client, engine, monkeypatch):
    loads, may_end = threading.Event(), threading.Event()

    def load(_repository, _name):
        loads.set()
        assert may_end.wait(60)

    monkeypatch.setattr(ModelRepository, "load_folder", load)
    with ThreadPoolExecutor(1) as pool:
        other = RestClient(engine.servers[0], **dict(MANAGER))
        answer = pool.submit(other.ask, "POST", "/v2/repository/models/double/load")
        assert loads.wait(60)
        assert client.ask("GET", "/v2/health/live").status == 200
        assert not answer.done()
        may_end.set()
        assert answer.result(60).status == 200
        other.close()


@pytest.mark.parametrize("call", ["load", "unload"])
def test_a_model_that_there_is_not_is_not_found(client, call):
    answer = client.ask("POST", f"/v2/repository/models/other/{call}")
    assert (answer.status, "other" in answer.content["error"]) == (404, True)


def test_a_model_that_can_t_be_loaded_is_told_so(client, monkeypatch):
    def load(_repository, name):
        raise LoadFailedError(name)

    monkeypatch.setattr(ModelRepository, "load_folder", load)
    answer = client.ask("POST", "/v2/repository/models/double/load")
    assert (answer.status, "could not be loaded" in answer.content["error"]) == (500, True)


UNLOAD = ("POST", "/v2/repository/models/double/unload", {})


def test_nothing_is_unloaded_unless_that_is_asked_for(engine):
    client = RestClient(engine.serve(0))
    answer = client.ask(*UNLOAD, dict(MANAGER))
    assert (answer.status, "--model-control explicit" in answer.content["error"]) == (403, True)
    assert client.ask("POST", "/v2/repository/index").status == 200
    paths = client.ask("GET", "/openapi.json").content["paths"]
    assert [path for path in paths if "repository" in path] == ["/v2/repository/index"]
    client.close()


def test_a_management_token_is_wanted_and_is_good_for_nothing_else(engine):
    client = RestClient(engine.serve(0, tokens=["secret"], **MANAGED))
    for token in ("secret", "other"):
        assert client.ask(*UNLOAD, {"Authorization": f"Bearer {token}"}).status == 403
    assert client.ask("POST", "/v2/repository/index", {}, dict(MANAGER)).status == 401
    assert client.ask(*UNLOAD, dict(MANAGER)).status == 200
    client.close()


@pytest.mark.parametrize(
    ("host", "headers", "status"),
    [
        ("127.0.0.1:8501", {"Origin": "http://evil.example"}, 403),
        ("127.0.0.1:8501", {"Origin": "null"}, 403),
        ("127.0.0.1:8501", {"Origin": "http://127.0.0.1:80"}, 403),
        ("127.0.0.1:8501", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("evil.example", {"Origin": "http://evil.example"}, 403),  # Its name has our address.
        ("127.0.0.1:8501", {"Origin": "http://127.0.0.1:8501"}, 200),
        ("localhost", {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}, 200),
        ("model.default.svc", {}, 200),
    ],
)
def test_the_page_of_another_site_can_t_unload_a_model(client, host, headers, status):
    answer = client.ask(*UNLOAD, {"Host": host, **headers, **dict(MANAGER)})
    assert answer.status == status
    if status == 403:  # The text has what the browser sent.
        name, value = next(iter(headers.items()))
        assert f"{name.lower()}: {value}" in answer.content["error"]
