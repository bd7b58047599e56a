"""A folder whose new versions have other names, shapes and dtypes, under clients of the old."""

import itertools
import json
import shutil
import threading
from collections import Counter
from http.client import HTTPConnection

import numpy as np
import pytest

from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.models.model_folder import ModelFolder
from keras_deepseek.inference.models.model_options import ModelOptions
from tests.oracles.rest_client import RestClient

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn")


def write_version(folder, *inputs, output="y"):
    """Writes an ONNX model whose output is the double of its first input."""
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    specs = [
        helper.make_tensor_value_info(name, getattr(kinds, kind), ["rows", *sizes])
        for name, kind, sizes in inputs
    ]
    name, kind, sizes = inputs[0]
    graph = helper.make_graph(
        [
            *(
                helper.make_node("Identity", [other], [f"{other}_unused"])
                for other, *_ in inputs[1:]
            ),
            helper.make_node("Add", [name, name], [output]),
        ],
        "double",
        specs,
        [helper.make_tensor_value_info(output, getattr(kinds, kind), ["rows", *sizes])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")


FIRST = ("keras_tensor", "FLOAT", [2])


@pytest.fixture
def folder(tmp_path):
    write_version(tmp_path / "digits" / "1", FIRST)
    return tmp_path / "digits"


@pytest.fixture
def engine(folder):
    with ServingEngine(folder, name="digits", warm_up=False) as engine:
        engine.folders[0].stop()
        yield engine


@pytest.fixture
def look(engine):
    return lambda: engine.folders[0].look(at_once=True)


@pytest.fixture
def server(engine):
    return engine.serve(http_port=0, admin_port=0)


@pytest.fixture
def client(server):
    client = RestClient(server)
    yield client
    client.close()


def states(engine):
    return {number: version.state for number, version in engine.models["digits"].states.items()}


def infer(name, output):
    tensor = {"name": name, "shape": [1, 2], "datatype": "FP32", "data": [1.5, 2]}
    return {"inputs": [tensor], "outputs": [{"name": output}]}


def test_a_single_input_keeps_the_names_that_it_had(engine, folder, look, client):
    for number, output in ((2, "y"), (3, "dense_3")):
        write_version(folder / f"{number}", (f"keras_tensor_{number}", "FLOAT", [2]), output=output)
        look()
        assert states(engine) == {number: "AVAILABLE"}
    for name, output in (("keras_tensor", "y"), ("keras_tensor_3", "dense_3")):
        rows = {"instances": [{name: [1.5, 2]}]}
        assert client.ask("POST", "/v1/models/digits:predict", rows).content == {
            "predictions": [[3.0, 4.0]]
        }
        answered = client.ask("POST", "/v2/models/digits/infer", infer(name, output)).content
        assert [(item["name"], item["data"]) for item in answered["outputs"]] == [(output, [3, 4])]
        np.testing.assert_array_equal(engine.predict({name: [[1.5, 2]]}), [[3, 4]])
    for name, output in (("keras_tensor_9", "y"), ("keras_tensor", "dense_3")):
        answered = client.ask("POST", "/v2/models/digits/infer", infer(name, output))
        assert answered.status == 400


def test_a_single_input_keeps_its_name_over_grpc(engine, folder, look, serve_grpc):
    write_version(folder / "2", ("keras_tensor_2", "FLOAT", [2]), output="dense")
    look()
    client, call = serve_grpc(engine), "inference.GRPCInferenceService/ModelInfer"
    tensor = {"datatype": "FP32", "shape": [1, 2], "contents": {"fp32_contents": [1.5, 2]}}
    for name, output in (("keras_tensor", "y"), ("keras_tensor_2", "dense")):
        answer = client.ask(call, model_name="digits", inputs=[{"name": name, **tensor}])
        (tensor_answer,) = answer.outputs
        assert (answer.model_version, tensor_answer.name) == ("2", output)
        assert list(tensor_answer.contents.fp32_contents) == [3, 4]


def test_a_version_whose_input_changed_waits_and_says_why(engine, folder, look, client, caplog):
    write_version(folder / "2", ("keras_tensor", "INT32", [2]))
    look()
    look()
    assert states(engine) == {1: "AVAILABLE", 2: "START"}
    change = "an input was keras_tensor: float32 (any, 2) and is keras_tensor: int32 (any, 2)"
    (record,) = [item for item in caplog.records if item.levelname == "WARNING"]
    assert change in record.message
    assert "--accept-changed-signature" in record.message
    newest, _ = client.ask("GET", "/v1/models/digits").content["model_version_status"]
    assert (newest["state"], newest["status"]["error_code"]) == ("START", "FAILED_PRECONDITION")
    index = client.ask("POST", "/v2/repository/index", {}).content
    ready = client.ask("GET", "/v2/models/digits/versions/2/ready")
    for text in (newest["status"]["error_message"], index[1]["reason"], ready.content["error"]):
        assert change in text
    health = {"status": "ready", "waiting": {"digits": [2]}}
    assert client.ask("GET", "/healthz").content == health
    assert client.ask("GET", "/v2/health/ready").content == {"ready": True}
    admin = RestClient(engine._admin_servers[0])
    assert admin.ask("GET", "/healthz").content == health
    admin.close()


def test_a_name_that_comes_back_must_mean_the_same(engine, folder, look):
    steps = (("keras_tensor_2", "dense", {2}), ("keras_tensor", "dense", {2}), (FIRST[0], "y", {4}))
    for number, (name, output, served) in enumerate(steps, 2):
        write_version(folder / str(number), (name, "FLOAT", [2]), output=output)
        look()
        assert engine.models["digits"].versions.keys() == served


def test_a_version_that_waits_and_is_removed_leaves_no_trace(engine, folder, look, caplog):
    caplog.set_level("INFO")
    write_version(folder / "2", ("keras_tensor", "FLOAT", [3]))
    look()
    shutil.rmtree(folder / "2")
    look()
    assert states(engine) == {1: "AVAILABLE"}
    assert "Version 2 of 'digits' was removed while it waited." in caplog.text
    assert engine.predict([[1.5, 2]]).tolist() == [[3, 4]]
    write_version(folder / "3", ("keras_tensor", "FLOAT", ["length"]))
    look()
    assert states(engine) == {3: "AVAILABLE"}


def test_a_changed_version_is_served_where_that_is_asked_for(engine, folder):
    write_version(folder / "2", ("keras_tensor", "INT32", [2]))
    options = ModelOptions(warm_up=False, accept_changed_signature=True)
    ModelFolder(engine.repository, folder, "digits", options).look(at_once=True)
    assert states(engine)[2] == "AVAILABLE"
    assert engine.load(str(folder / "1"), version=3).state == "AVAILABLE"


FLOATS, OTHERS = ("FLOAT", [2]), [("FLOAT", [3]), ("INT32", [2]), ("FLOAT", [2, 2])]


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_no_right_request_is_refused_while_20_versions_appear(engine, folder, look, server):
    ends, statuses, failures = threading.Event(), [], []
    answered = threading.Semaphore(0)

    def ask(body, path, expected):
        connection = HTTPConnection(server.host, server.port, timeout=60)
        while not ends.is_set():
            connection.request("POST", path, body)
            response = connection.getresponse()
            content = json.loads(response.read())
            statuses.append(response.status)
            answered.release()
            if response.status != 200 or not expected(content):
                failures.append((response.status, content))
        connection.close()

    calls = [
        (
            {"instances": [{"keras_tensor": [1.5, 2]}]},
            "/v1/models/digits:predict",
            lambda content: content == {"predictions": [[3.0, 4.0]]},
        ),
        (
            {"inputs": {"keras_tensor": [[1.5, 2]]}},
            "/v1/models/digits:predict",
            lambda content: content == {"outputs": [[3.0, 4.0]]},
        ),
        (
            infer("keras_tensor", "y"),
            "/v2/models/digits/infer",
            lambda content: (
                [(item["name"], item["data"]) for item in content["outputs"]] == [("y", [3, 4])]
            ),
        ),
    ]
    clients = [
        threading.Thread(target=ask, args=(json.dumps(body), path, expected))
        for body, path, expected in itertools.islice(itertools.cycle(calls), 64)
    ]
    for thread in clients:
        thread.start()
    try:
        switched, waiting = [], []
        for number in range(2, 22):
            kind, sizes = OTHERS[number // 2 % 3] if number % 2 else FLOATS
            inputs = [(f"keras_tensor_{number}", kind, sizes)]
            if number % 8 == 5:
                inputs.append(("mask", "FLOAT", [2]))
            output = "y" if number % 4 else f"dense_{number}"
            write_version(folder / str(number), *inputs, output=output)
            look()
            newest = states(engine)[number]
            (switched if newest == "AVAILABLE" else waiting).append(number)
            assert all(answered.acquire(timeout=60) for _ in range(640))
    finally:
        ends.set()
        for thread in clients:
            thread.join()
    print(f"answers: {Counter(statuses)}; switched to {switched}; waiting {waiting}")
    assert failures == []
    assert switched == list(range(2, 22, 2))
