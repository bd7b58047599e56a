import json
import urllib.error
import urllib.request

import pytest

from keras_deepseek.inference import HttpServer, ServingEngine
from keras_deepseek.inference.http import http_application
from keras_deepseek.inference.http.answers import answer_json
from keras_deepseek.inference.http.message import HttpError, HttpRequest
from keras_deepseek.inference.http.operation import FLAG, Operation, fields
from keras_deepseek.inference.http.routing import Route, Router


def answer(server, request, parameters):
    raise AssertionError("Nothing is answered here.")


def route(method, path, **options):
    return Route(method, path, answer, **options)


ROUTER = Router(
    [
        route("POST", "/v1/{name}:do", call="do"),
        route("POST", "/v1/{name}/v/{version}:do", call="do_version"),
        route("GET", "/v1/{name}", call="state"),
        route("GET", "/v1/{name}/a.b", call="dotted"),
        route("GET", "/fixed", call="fixed", is_open=True),
        route("POST", "/fixed", call="change"),
    ]
)


def find(method, path):
    return ROUTER.find(HttpRequest(method, path))


@pytest.mark.parametrize(
    ("method", "path", "call", "parameters"),
    [
        ("POST", "/v1/digits:do", "do", {"name": "digits"}),
        ("POST", "/v1/digits/v/12:do", "do_version", {"name": "digits", "version": "12"}),
        ("GET", "/v1/digits", "state", {"name": "digits"}),
        ("HEAD", "/v1/digits", "state", {"name": "digits"}),
        ("GET", "/v1/digits/a.b", "dotted", {"name": "digits"}),
        ("GET", "/v1/" + "d" * 1000, "state", {"name": "d" * 1000}),
        ("GET", "/fixed", "fixed", {}),
        ("HEAD", "/fixed", "fixed", {}),
        ("POST", "/fixed", "change", {}),
    ],
)
def test_a_route_is_found_with_the_parameters_of_its_path(method, path, call, parameters):
    for _ in range(2):  # The second time from what is kept.
        found, received = find(method, path)
        assert (found.call, dict(received)) == (call, parameters)


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/", "/v1/a/b", "/v1/a:b:do", "/v1/digits/a-b", "/fixed/", "/v1//v/1:do"],
)
def test_a_path_without_a_route_is_malformed(path):
    with pytest.raises(HttpError, match="Malformed request: GET /") as caught:
        find("GET", path)
    assert caught.value.status == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/digits:do", "POST"),
        ("POST", "/v1/digits", "GET, HEAD"),
        ("DELETE", "/fixed", "GET, POST, HEAD"),
    ],
)
def test_another_method_is_refused_with_those_that_are_allowed(method, path, allowed):
    with pytest.raises(HttpError) as caught:
        find(method, path)
    assert (caught.value.status, caught.value.headers) == (405, (("allow", allowed),))


def test_a_path_is_open_if_one_of_its_routes_is():
    assert ROUTER.is_open("/fixed")
    assert not ROUTER.is_open("/v1/digits")
    assert not ROUTER.is_open("/nowhere")


def test_a_protocol_is_added_by_its_routes_alone(doubler, monkeypatch):
    """One table gives the answers, the errors, the OpenAPI document and the metrics."""
    pytest.importorskip("httptools")

    def ready(server, request, parameters):
        server.engine.find(parameters["name"])
        return answer_json({"ok": True})

    def describe(name, signature):
        return Operation(f"Ask {name!r}", fields({"ok": FLAG}))

    route = Route("GET", "/mine/{name}/ok", ready, "mine", "ok", describe_model=describe)
    monkeypatch.setattr(http_application, "ROUTES", (*http_application.ROUTES, route))
    with ServingEngine(doubler, name="double") as engine:
        server = HttpServer(engine, port=0)
        server.start()

        def ask(path, data=None):
            try:
                with urllib.request.urlopen(f"{server.url}{path}", data, timeout=60) as response:
                    return response.status, response.read().decode()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read().decode()

        assert ask("/mine/double/ok") == (200, '{"ok":true}')
        assert ask("/mine/other/ok")[0] == 404
        assert ask("/mine/double/ok", b"")[0] == 405
        paths = json.loads(ask("/openapi.json")[1])["paths"]
        assert paths["/mine/double/ok"]["get"]["summary"] == "Ask 'double'"
        assert 'method="ok",model="",protocol="mine"' in ask("/metrics")[1]
        server.stop()
