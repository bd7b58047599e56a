"""A protocol as CONTRIBUTING.md says to add one: `POST /simple/NAME`, of rows and answers."""

import json

import numpy as np
import pytest

from keras_deepseek.artifacts import Signature, TensorSpec
from keras_deepseek.inference import HttpServer, ServingEngine
from keras_deepseek.inference.http import http_application, openapi_schemas
from keras_deepseek.inference.http.answers import answer_json, dispatch
from keras_deepseek.inference.http.body import read_body
from keras_deepseek.inference.http.routing import TEXT, ErrorForm, Operation, Route, fields
from keras_deepseek.inference.protocols.json_text import (
    inputs_from_rows,
    load_object,
    rows_from_outputs,
)
from tests.inference.conftest import service_of
from tests.oracles.rest_client import RestClient

pytest.importorskip("uvicorn")


async def answer(service, request):
    body = await read_body(request, service.options.max_body_bytes)

    def bind(signature):
        rows = load_object(body, "with a list of 'rows'").get("rows")
        return signature.bind(inputs_from_rows(rows, signature, "rows"))

    outputs = await dispatch(service, request, request.parameters["name"], bind, text=body)
    return answer_json({"answers": rows_from_outputs(outputs)})


def describe(name, signature):
    body = fields({"rows": openapi_schemas.rows_schema(signature)})
    body["examples"] = [{"rows": openapi_schemas.example_of_rows(signature)}]
    answers = fields({"answers": openapi_schemas.answered_rows_schema(signature)})
    return Operation(f"Answer rows with {name!r}", answers, body=body)


PROBLEM = ErrorForm("Problem", fields({"problem": TEXT}), lambda message, *_: {"problem": message})
ROUTE = Route(
    "POST",
    "/simple/{name}",
    answer,
    "simple",
    "answer",
    describe_model=describe,
    error_form=PROBLEM,
)


class Adder:
    signature = Signature(
        inputs=(TensorSpec("a", (None,), "float32"), TensorSpec("b", (None, 2), "float32")),
        outputs=(TensorSpec("sum", (None,), "float32"), TensorSpec("b", (None, 2), "float32")),
    )

    def run(self, inputs):
        return {"sum": inputs["a"] + np.sum(inputs["b"], axis=1), "b": inputs["b"]}


@pytest.fixture
def engine(doubler, monkeypatch):
    monkeypatch.setattr(http_application, "ROUTES", (*http_application.ROUTES, ROUTE))
    with ServingEngine(doubler, name="double", max_queue_rows=4, warm_up=False) as engine:
        engine.load(Adder(), name="two")
        yield engine


@pytest.fixture
def connect(engine):
    """Starts servers, and returns a client of each."""
    started = []

    def connect(**arguments):
        server = HttpServer(service_of(engine, **arguments))
        server.start()
        client = RestClient(server)
        started.append((client, server))
        return client

    yield connect
    for client, server in started:
        client.close()
        server.stop()


def test_rows_are_answered(connect):
    client = connect()
    answered = client.ask("POST", "/simple/double", {"rows": [[1, 2], [3, 4]]})
    assert (answered.status, answered.content) == (200, {"answers": [[2.0, 4.0], [6.0, 8.0]]})
    answered = client.ask("POST", "/simple/two", {"rows": [{"a": 1, "b": [2, 3]}]})
    assert answered.content == {"answers": [{"sum": 6.0, "b": [2.0, 3.0]}]}


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "problem"),
    [
        ("POST", "double", "no JSON", {}, 400, "not JSON"),
        ("POST", "double", [], {}, 400, "with a list of 'rows'"),
        ("POST", "double", {}, {}, 400, "'rows' must be a list"),
        ("POST", "two", {"rows": [{"a": 1}]}, {}, 400, "missing ['b']"),
        ("POST", "double", {"rows": [[1, 2]] * 9}, {}, 400, "too large"),
        ("POST", "none", {"rows": [[1, 2]]}, {}, 404, "none"),
        ("GET", "double", None, {}, 405, "Use POST."),
        ("POST", "double", " " * 1001, {}, 413, "larger than 1000 bytes"),
        ("POST", "double", "{}", {"Content-Encoding": "br"}, 415, "gzip"),
        ("POST", "double", {"rows": [[-1, 0]]}, {}, 500, "The model failed"),
    ],
)
def test_errors_have_the_form_of_the_protocol(
    connect, method, path, body, headers, status, problem
):
    answered = connect(max_body_bytes=1000).ask(method, f"/simple/{path}", body, headers)
    assert answered.status == status
    assert answered.content.keys() == {"problem"}
    assert problem in answered.content["problem"]


def test_a_missing_token_and_a_stopping_engine_are_told_in_that_form_too(connect, engine):
    guarded = connect(tokens=["secret"])
    answered = guarded.ask("POST", "/simple/double", {"rows": [[1, 2]]})
    assert (answered.status, list(answered.content)) == (401, ["problem"])
    engine.repository.state = "closed"
    answered = connect().ask("POST", "/simple/double", {"rows": [[1, 2]]})
    engine.repository.state = "ready"
    assert (answered.status, list(answered.content)) == (503, ["problem"])


def test_errors_of_other_paths_keep_the_form_that_is_shared(connect):
    client = connect(max_body_bytes=1000)
    for path in ("/v1/models/none:predict", "/nowhere", "/simple"):
        answered = client.ask("POST", path, "{}")
        assert (answered.status, list(answered.content)) == (404, ["error"])


def test_the_protocol_is_described_and_counted(connect):
    client = connect()
    client.ask("POST", "/simple/double", {"rows": [[1, 2]]})
    document = client.ask("GET", "/openapi.json").content
    assert "simple" in document["info"]["description"]
    components = document["components"]
    operation = document["paths"]["/simple/double"]["post"]
    assert operation["summary"] == "Answer rows with 'double'"
    body = components["schemas"]["double.answer.request"]
    assert body["examples"] == [{"rows": [[0.0, 0.0]]}]
    for path, form in (("/simple/double", "Problem"), ("/v1/models/double:predict", "Error")):
        refused = document["paths"][path]["post"]["responses"]["400"]["$ref"].split("/")[-1]
        schema = components["responses"][refused]["content"]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/{form}"}
    assert json.dumps(components["schemas"]["Problem"]) == json.dumps(PROBLEM.schema)
    pytest.importorskip("prometheus_client")
    text = client.ask("GET", "/metrics").body.decode()
    called = 'method="answer",model="double",protocol="simple"'
    assert f'keras_deepseek_requests_total{{{called},status="200",version="1"}} 1.0' in text
