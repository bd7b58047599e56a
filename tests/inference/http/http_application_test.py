import asyncio
import contextlib
import http.client
import json
import logging
import subprocess
import sys

import numpy as np
import pytest

from keras_deepseek.inference import HttpServer, ServingEngine
from keras_deepseek.inference.http.http_application import HttpApplication
from keras_deepseek.inference.monitoring.access_log import LOGGER
from keras_deepseek.inference.protocols import tf_serving
from tests.inference.conftest import MANAGED, MANAGER, service_of
from tests.oracles.protocols import import_client, skip_without

pytest.importorskip("uvicorn")

PREDICT = "/v1/models/double:predict"


@pytest.fixture
def engine(doubler):
    with ServingEngine(doubler, name="double", max_queue_rows=2) as engine:
        yield engine


@pytest.fixture
def server(engine):
    server = HttpServer(service_of(engine, max_body_bytes=1000))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def ask(server):
    """Asks over one connection that is kept open, as clients do."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)

    def ask(method, path, body=None, headers=None):
        headers = headers or {}
        connection.request(method, path, body, headers, encode_chunked=bool(headers))
        response = connection.getresponse()
        return response.status, json.loads(response.read()), response.headers

    yield ask
    connection.close()


def test_predictions_come_in_the_form_of_the_question(ask):
    status, content, headers = ask("POST", PREDICT, '{"instances": [[1, 2], [3, 4]]}')
    assert (status, content) == (200, {"predictions": [[2.0, 4.0], [6.0, 8.0]]})
    assert headers["Content-Type"] == "application/json"
    assert ask("POST", PREDICT, '{"inputs": {"x": [[1, 2]]}}')[1] == {"outputs": [[2.0, 4.0]]}
    assert ask("POST", PREDICT, '{"instances": []}')[1] == {"predictions": []}


def test_the_one_version_may_be_named(ask):
    path = "/v1/models/double/versions/1"
    assert ask("POST", f"{path}:predict", '{"inputs": [[1, 2]]}')[0] == 200
    assert ask("GET", path)[0] == 200
    assert ask("GET", f"{path}/metadata")[0] == 200


def test_status_metadata_and_health_are_told(ask):
    status = ask("GET", "/v1/models/double")[1]
    assert status["model_version_status"][0]["state"] == "AVAILABLE"
    metadata = ask("GET", "/v1/models/double/metadata")[1]
    assert metadata["model_spec"]["name"] == "double"
    assert ask("GET", "/healthz")[:2] == (200, {"status": "ready"})


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "/v1/models/other:predict", 404, "Servable not found for request: Latest(other)"),
        ("GET", "/v1/models/other", 404, "Could not find any versions of model other"),
        ("GET", "/v1/models/double/labels/new", 400, "Unrecognized servable version label: new"),
        ("GET", "/v1/models/other/metadata", 404, "Servable not found for request: Latest(other)"),
        (
            "GET",
            "/v1/models/double/versions/2",
            404,
            "Could not find version 2 of model double",
        ),
        (
            "GET",
            "/v1/models/double/versions/2/metadata",
            404,
            "Servable not found for request: Specific(double, 2)",
        ),
        ("GET", "/v1/models/double/versions/x", 404, "the version 'x'"),
        ("GET", "/v2/models/double/versions/x", 404, "the version 'x'"),
        ("GET", "/nowhere", 404, "There is no path '/nowhere'"),
        ("GET", PREDICT, 405, "Use POST."),
        ("POST", "/v1/models/double", 405, "Use GET or HEAD."),
    ],
)
def test_another_path_or_method_is_refused(ask, method, path, status, message):
    received, content, _ = ask(method, path, "{}" if method == "POST" else None)
    assert received == status
    assert content.keys() == {"error"}
    assert message in content["error"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("not json", "not JSON"),
        ("{}", "either 'instances' or 'inputs'"),
        ('{"instances": [[1, 2, 3]]}', "received shape (1, 3); expected x: float32 (any, 2)"),
        ('{"instances": [["a", "b"]]}', "received text; expected x"),
        ('{"instances": [[1], [1, 2]]}', "rows of unequal length"),
        ('{"instances": [{"z": [1, 2]}]}', "missing ['x'], unknown ['z']"),
    ],
)
def test_a_bad_body_is_answered_with_400_and_what_is_wrong(ask, body, message):
    status, content, _ = ask("POST", PREDICT, body)
    assert status == 400
    assert message in content["error"]


def test_a_body_that_is_too_large_is_refused_with_or_without_its_length(ask):
    assert ask("POST", PREDICT, b" " * 1001)[0] == 413
    pieces = iter([b" " * 600, b" " * 600])
    status, content, _ = ask("POST", PREDICT, pieces, {"Transfer-Encoding": "chunked"})
    assert (status, "larger than 1000 bytes" in content["error"]) == (413, True)


@pytest.mark.parametrize("max_batch_size", [2, 32])  # With 2 it is refused before its body.
def test_a_full_queue_is_answered_with_429_and_when_to_try_again(doubler, max_batch_size):
    with ServingEngine(
        doubler, name="double", max_queue_rows=2, max_batch_size=max_batch_size
    ) as engine:
        with full(engine, doubler) as server:
            status, content, headers = ask_once(server, PREDICT)
            assert ask_once(server, "/v1/models/other:predict")[0] == 404
        assert (status, headers["Retry-After"]) == (429, "1")
        assert "The queue is full" in content["error"]
        called = ("double", "1", "tf_serving", "predict")
        assert engine.monitor.answers()[called, "429"] == 1
        assert engine.monitor.arrivals()["double"].total == 1
        assert engine.monitor.arrivals()["double"].in_flight == 0


def test_requests_of_one_turn_of_the_loop_take_each_others_room(doubler):
    with ServingEngine(doubler, name="double", max_queue_rows=3, max_batch_size=2) as engine:
        application = HttpApplication(service_of(engine))

        async def refuse_in_two_turns():
            for _ in range(2):
                answers = [
                    application.refuse_early(b"POST", PREDICT.encode(), []) for _ in range(5)
                ]
                assert [answer is not None for answer in answers] == [False] * 3 + [True] * 2
                await asyncio.sleep(0)

        asyncio.run(refuse_in_two_turns())


@pytest.mark.parametrize(
    ("token", "status"), [("", 401), ("Bearer wrong", 401), ("Bearer first", 429)]
)
def test_who_has_no_token_does_not_learn_that_a_queue_is_full(doubler, token, status):
    headers = {"Authorization": token} if token else {}
    with (
        ServingEngine(doubler, name="double", max_queue_rows=2, max_batch_size=2) as engine,
        full(engine, doubler, tokens=["first"]) as server,
    ):
        assert ask_once(server, PREDICT, headers)[0] == status


def test_the_access_log_has_the_refusals_of_a_full_queue(doubler, caplog):
    with (
        caplog.at_level(logging.INFO, LOGGER),
        ServingEngine(doubler, name="double", max_queue_rows=2, max_batch_size=2) as engine,
        full(engine, doubler, access_log=True) as server,
    ):
        assert ask_once(server, PREDICT)[0] == 429
        server.stop()
    assert [json.loads(record.getMessage())["status"] for record in caplog.records] == [429]


@contextlib.contextmanager
def full(engine, doubler, **options):
    """A server, while one batch of the model runs and one waits: there is room for no more."""
    server = HttpServer(service_of(engine, **options))
    server.start()
    doubler.hold()
    running = engine.submit([[1, 1]])
    assert doubler.entered.wait(60)
    waiting = engine.submit([[1, 1], [1, 1]])
    yield server
    doubler.release()
    assert len(running.result()["y"]) + len(waiting.result()["y"]) == 3
    server.stop()


def ask_once(server, path, headers=None):
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", path, '{"instances": [[1, 2]]}', headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read()), response.headers


def test_a_failing_model_is_answered_with_500_and_logged_but_not_shown(ask, caplog):
    with caplog.at_level(logging.ERROR):
        status, content, _ = ask("POST", PREDICT, '{"instances": [[-1, 0]]}')
        assert status == 500
        assert content == {"error": "The model failed with ArithmeticError; see the server's log."}
        assert ask("POST", PREDICT, '{"instances": [[1, 2]]}')[0] == 200
    assert "a row starts with -1" in caplog.text


def test_a_fault_of_the_server_itself_is_answered_with_500_too(ask, server, monkeypatch, caplog):
    monkeypatch.setattr(tf_serving, "format_versions", lambda versions: 1 / 0)
    status, content, _ = ask("GET", "/v1/models/double")
    assert (status, content) == (500, {"error": "The server failed; see its log."})
    server.stop()  # It is logged after the answer.
    assert "ZeroDivisionError" in caplog.text


def test_a_stopping_engine_answers_503(ask, engine):
    engine.repository.state = "closed"
    assert ask("GET", "/healthz")[0] == 503
    assert ask("POST", PREDICT, '{"instances": [[1, 2]]}')[0] == 503
    status = ask("GET", "/v1/models/double")[1]
    assert status["model_version_status"][0]["state"] == "UNLOADING"
    engine.repository.state = "ready"


@pytest.fixture
def guarded(engine):
    server = HttpServer(service_of(engine, tokens=["first", "second"]))
    server.start()
    yield server
    server.stop()


def fetch(server, method, path, headers):
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    connection.request(
        method, path, b'{"instances": [[1, 2]]}' if method == "POST" else None, headers
    )
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status, response.headers


def test_without_a_token_only_health_is_told(guarded):
    for path in ("/v1/models/double", "/v2", "/metrics", "/nowhere", "/v2/models/double/ready"):
        status, headers = fetch(guarded, "GET", path, {})
        assert (status, headers["WWW-Authenticate"]) == (401, 'Bearer realm="keras_deepseek"')
    for path in ("/healthz", "/v2/health/live", "/v2/health/ready"):
        assert fetch(guarded, "GET", path, {})[0] == 200
    assert fetch(guarded, "POST", PREDICT, {})[0] == 401


def test_any_of_the_tokens_opens_and_no_other(guarded):
    for token in ("first", "second"):
        assert fetch(guarded, "POST", PREDICT, {"Authorization": f"Bearer {token}"})[0] == 200
    for value in ("Bearer third", "Bearer", "first", "Basic first", "Bearer first second", "\xff"):
        status, headers = fetch(guarded, "POST", PREDICT, {"Authorization": value})
        assert (status, "invalid_token" in headers["WWW-Authenticate"]) == (401, True)


@pytest.fixture
def lines(caplog):
    """Returns the lines of the access log that there are."""
    logging.getLogger(LOGGER).setLevel(logging.NOTSET)
    yield lambda: [json.loads(record.message) for record in caplog.records if record.name == LOGGER]
    logging.getLogger(LOGGER).setLevel(logging.NOTSET)


def test_requests_are_logged_where_that_is_asked_for(engine, lines):
    server = engine.serve(0, access_log=True)
    status, headers = fetch(server, "POST", PREDICT + "?key=1", {"X-Request-Id": "mine-1"})
    assert (status, headers["X-Request-Id"]) == (200, "mine-1")
    other = fetch(server, "GET", "/nowhere", {"X-Request-Id": "two words"})[1]["X-Request-Id"]
    server.service.access_log.flush()
    first, second = lines()
    assert first["milliseconds"] >= first["queue_milliseconds"] + first["model_milliseconds"] > 0
    expected = {
        "method": "POST",
        "path": PREDICT,
        "status": 200,
        "bytes": len('{"predictions":[[2.0,4.0]]}'),
        "batch_rows": 1,
        "model": "double",
        "version": "1",
        "client": "127.0.0.1",
        "request_id": "mine-1",
    }
    assert {key: first[key] for key in expected} == expected
    assert (second["status"], second["model"], second["batch_rows"]) == (404, "", None)
    assert second["request_id"] == other != "two words"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (PREDICT, {"instances": [[-1, 2]]}),
        (
            "/v2/models/double/infer",
            {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [-1, 2]}]},
        ),
    ],
)
def test_the_log_says_which_request_met_a_failing_model(engine, lines, caplog, path, body):
    server = engine.serve(0, access_log=True)
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    connection.request("POST", path, json.dumps(body), {"X-Request-Id": "mine-1"})
    response = connection.getresponse()
    assert (response.status, response.headers["X-Request-Id"]) == (500, "mine-1")
    connection.close()
    assert "The model 'double' failed. Request: mine-1." in caplog.text


def test_nothing_is_logged_otherwise(ask, lines):
    assert ask("POST", PREDICT, '{"instances": [[1, 2]]}')[0] == 200
    assert lines() == []


def test_names_that_clients_make_up_are_no_labels(ask, engine, server):
    for number in range(30):
        name = f"made-up-{number}"
        for path in (f"/v1/models/{name}", f"/v2/models/{name}", f"/{name}", f"/v1/{name}/x"):
            assert ask("GET", path)[0] == 404
        assert ask("POST", f"/v1/models/{name}:predict", '{"instances": [[1, 2]]}')[0] == 404
        assert ask("POST", f"/v2/models/double/versions/{number + 2}/infer", "{}")[0] in (400, 404)
        assert ask("GET", f"/v1/models/double/versions/{number + 2}")[0] == 404
    server.stop()
    assert {called[:2] for called, _ in engine.monitor.answers()} == {("", ""), ("double", "")}
    assert len(engine.monitor.answers()) < 10


def test_another_file_of_tokens_is_read(engine, tmp_path):
    path = tmp_path / "tokens"
    path.write_text("first")
    server = HttpServer(service_of(engine, tokens=path))
    server.start()
    path.write_text("another")
    server.service.tokens._clock = lambda: server.service.tokens._looked + 1.0
    statuses = [
        fetch(server, "POST", PREDICT, {"Authorization": f"Bearer {token}"})[0]
        for token in ("first", "another")
    ]
    server.stop()
    assert statuses == [401, 200]


ROWS = np.array([[1, 2], [3, 4]], "float32")


@pytest.fixture
def served(doubler):
    with ServingEngine(doubler, name="double") as engine:
        yield engine.serve(0, **MANAGED)


def triton_inputs(client, is_binary=True):
    tensor = client.InferInput("x", ROWS.shape, "FP32")
    tensor.set_data_from_numpy(ROWS, binary_data=is_binary)
    return [tensor]


def test_tritonclient(served, quiet):
    client = import_client("tritonclient.http")
    headers = {"Authorization": dict(MANAGER)["authorization"]}
    with client.InferenceServerClient(f"{served.host}:{served.port}", concurrency=4) as triton:
        assert triton.is_server_live()
        assert triton.is_server_ready()
        assert triton.is_model_ready("double", "1")
        assert triton.get_model_metadata("double")["inputs"][0]["shape"] == [-1, 2]
        for name in (None, "gzip", "deflate"):
            result = triton.infer(
                "double",
                triton_inputs(client),
                request_id="7",
                request_compression_algorithm=name,
                response_compression_algorithm=name,
            )
            assert (result.as_numpy("y") == 2 * ROWS).all()
            assert result.get_response()["id"] == "7"
        outputs = [client.InferRequestedOutput("y", binary_data=False)]
        result = triton.infer("double", triton_inputs(client, is_binary=False), outputs=outputs)
        assert (result.as_numpy("y") == 2 * ROWS).all()
        later = [triton.async_infer("double", triton_inputs(client)) for _ in range(20)]
        assert all((request.get_result().as_numpy("y") == 2 * ROWS).all() for request in later)
        with pytest.raises(client.InferenceServerException, match="no model 'other'") as caught:
            triton.infer("other", triton_inputs(client))
        assert caught.value.status() == "404"
        triton.load_model("double", headers=headers)
        assert triton.get_model_repository_index()[0]["state"] == "READY"
        triton.unload_model("double", headers=headers)
        assert triton.get_model_repository_index() == []


def test_tritonclient_s_aio(served, quiet):
    client = import_client("tritonclient.http.aio")

    async def ask():
        async with client.InferenceServerClient(f"{served.host}:{served.port}") as triton:
            assert await triton.is_model_ready("double")
            return await asyncio.gather(
                *(triton.infer("double", triton_inputs(client)) for _ in range(20))
            )

    assert all((result.as_numpy("y") == 2 * ROWS).all() for result in asyncio.run(ask()))


KSERVE = """
import asyncio, sys
import httpx
import numpy as np
import kserve
from kserve.inference_client import RESTConfig

async def ask(url):
    rows = np.array([[1, 2], [3, 4]], "float32")
    client = kserve.InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await client.is_server_live(url)
    assert await client.is_server_ready(url)
    assert await client.is_model_ready(url, "double")
    tensor = kserve.InferInput("x", [2, 2], "FP32")
    for is_binary in (True, False):
        tensor.set_data_from_numpy(rows, binary_data=is_binary)
        request = kserve.InferRequest("double", [tensor])
        answer = await client.infer(url, request, model_name="double")
        assert (answer.outputs[0].as_numpy() == 2 * rows).all()
    try:
        await client.infer(url, request, model_name="other")
    except httpx.HTTPStatusError as error:
        assert "no model 'other'" in str(error)
    await client.close()
    client = kserve.InferenceRESTClient(RESTConfig(protocol="v1"))
    answer = await client.infer(url, {"instances": [[1, 2]]}, model_name="double")
    assert answer == {"predictions": [[2, 4]]}
    await client.close()

asyncio.run(ask(sys.argv[1]))
print("answered")
"""


def test_kserve(served):
    skip_without("kserve")
    # Its messages have the names of Triton's: one process holds one of the two.
    call = [sys.executable, "-W", "ignore", "-c", KSERVE, served.url]
    process = subprocess.run(call, capture_output=True, text=True, check=False)
    assert process.stdout.strip().endswith("answered"), process.stderr


def test_ovmsclient(served, quiet):
    ovmsclient = import_client("ovmsclient")
    client = ovmsclient.make_http_client(f"{served.host}:{served.port}")
    assert (client.predict({"x": ROWS}, "double", 1) == 2 * ROWS).all()
    assert client.get_model_status("double", 1)[1]["state"] == "AVAILABLE"
    assert client.get_model_metadata("double", 1)["model_spec"]["version"] == "1"
    errors = import_client("ovmsclient.tfs_compat.base.errors")
    with pytest.raises(errors.ModelNotFoundError, match="no model 'other'"):
        client.predict({"x": ROWS}, "other", 1)
