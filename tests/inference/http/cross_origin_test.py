import http.client

import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference import HttpServer, ServerOptions, ServingEngine
from keras_deepseek.inference.http.http_application import HttpApplication
from tests.inference.conftest import MANAGED, MANAGER, service_of

pytest.importorskip("uvicorn")

APP = "https://app.example.com"
PREDICT = "/v1/models/double:predict"


@pytest.fixture
def engine(doubler):
    with ServingEngine(doubler, name="double", max_queue_rows=2, max_batch_size=2) as engine:
        yield engine


@pytest.fixture
def serve(engine):
    servers = []

    def serve(**options):
        servers.append(HttpServer(service_of(engine, **{"cors_origins": [APP], **options})))
        servers[-1].start()
        return servers[-1]

    yield serve
    for server in servers:
        server.stop()


def ask(server, method, path, body=None, origin=APP, **headers):
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, {"Origin": origin, **headers})
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


def ask_first(server, path, origin=APP):
    """The request by which a browser asks whether a page may call a path."""
    asked = {"Access_Control_Request_Method": "POST"}
    headers = {"Access_Control_Request_Headers": "authorization,content-type"}
    return ask(server, "OPTIONS", path, origin=origin, **asked, **headers)


ALLOWED = (
    PREDICT,
    "/v1/models/double/labels/stable:classify",
    "/v1/models/double/metadata",
    "/v2/models/double/infer",
    "/v2/health/ready",
    "/v1/chat/completions",
)
REFUSED = (
    "/v2/repository/models/double/unload",
    "/v2/repository/index",
    "/v2/systemsharedmemory/region/r/register",
    "/metrics",
    "/",
    "/openapi.json",
    "/nowhere",
)


def test_a_page_of_a_named_origin_may_call_models_and_nothing_else(serve):
    server = serve(tokens=["secret"], shared_memory=True, **MANAGED)
    for path in ALLOWED:
        answer = ask_first(server, path)
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, APP), path
        assert answer.headers["Access-Control-Allow-Headers"] == "authorization,content-type"
        assert answer.headers["Vary"] == "origin"
    assert "POST" in ask_first(server, PREDICT).headers["Access-Control-Allow-Methods"]
    token = {"Authorization": dict(MANAGER)["authorization"]}
    for path in REFUSED:
        for answer in (ask_first(server, path), ask(server, "POST", path, **token)):
            assert answer.status in (401, 403, 404, 405), path
            assert not any(name.startswith("Access-Control") for name in answer.headers)
    assert "Access-Control-Allow-Origin" not in ask(server, "GET", "/metrics").headers


@pytest.mark.parametrize(
    "origin", ["https://app.example.com.evil.example", "http://app.example.com", "null", "*"]
)
def test_a_page_of_another_origin_may_not(serve, origin):
    server = serve()
    answers = [
        ask_first(server, PREDICT, origin),
        ask(server, "POST", PREDICT, '{"instances": [[1, 2]]}', origin),
    ]
    assert [answer.status for answer in answers] == [405, 200]
    for answer in answers:
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert answer.headers["Vary"] == "origin"


def test_a_page_reads_answers_and_errors(serve):
    server = serve(tokens=["secret"], max_body_bytes=100)
    token = {"Authorization": "Bearer secret"}
    for status, path, body, headers in (
        (200, PREDICT, '{"instances": [[1, 2]]}', token),
        (400, PREDICT, "{", token),
        (401, PREDICT, "{}", {}),
        (404, "/v1/models/other:predict", "{}", token),
        (405, "/v1/models/double", "{}", token),
        (413, PREDICT, " " * 101, token),
    ):
        answer = ask(server, "POST", path, body, **headers)
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (status, APP)
        assert "retry-after" in answer.headers["Access-Control-Expose-Headers"]


def test_a_page_reads_that_a_queue_is_full(engine, doubler):
    application = HttpApplication(service_of(engine, cors_origins=[APP]))
    doubler.hold()
    answers = [engine.submit([[1, 2]])]
    assert doubler.entered.wait(60)
    answers.append(engine.submit([[1, 2], [1, 2]]))
    headers, _ = application.refuse_early(b"POST", PREDICT.encode(), [(b"origin", APP.encode())])
    doubler.release()
    for answer in answers:
        answer.result(60)
    assert dict(headers)[b"access-control-allow-origin"] == APP.encode()


def test_without_origins_nothing_is_said(serve):
    server = serve(cors_origins=())
    assert ask_first(server, PREDICT).status == 405
    answer = ask(server, "POST", PREDICT, '{"instances": [[1, 2]]}')
    assert not {"Vary", "Access-Control-Allow-Origin"} & set(answer.headers.keys())


@pytest.mark.parametrize(
    "origin",
    [
        "app.example.com",
        "https://app.example.com/",
        "https://app.example.com/page",
        "https://App.example.com",
        "https://app.example.com:443",
        "http://app.example.com:80",
        "https://a.example, https://b.example",
        "null",
        3,
    ],
)
def test_an_origin_is_as_browsers_send_it(origin):
    with pytest.raises(InvalidInputError, match="expected scheme://host or scheme://host:port as"):
        ServerOptions(cors_origins=[origin])


def test_origins_are_named():
    with pytest.raises(InvalidInputError, match=r"received '\*', by which any page"):
        ServerOptions(cors_origins=["*"])
    with pytest.raises(InvalidInputError, match="must be a list of origins"):
        ServerOptions(cors_origins=APP)
    origins = (APP, "http://localhost:5173", "http://[::1]:8443", "https://a.example:80")
    assert ServerOptions(cors_origins=list(origins)).cors_origins == origins
