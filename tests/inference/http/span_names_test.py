import types

import pytest

from keras_deepseek.inference.http.message import HttpRequest
from keras_deepseek.inference.http.span_names import name_http

SERVER = types.SimpleNamespace(url="https://[::1]:8501", host="::1", port=8501)


def test_a_request_is_called_by_its_method_and_the_form_of_its_path():
    request = HttpRequest("GET", "/v1/models/a", "key=secret", {"user-agent": "u" * 2000})
    names = name_http(SERVER, request, 200, "/v1/models/{name}")
    assert (names.name, names.has_failed) == ("GET /v1/models/{name}", False)
    assert len(names.attributes["user_agent.original"]) == 1024
    assert names.attributes["url.scheme"] == "https"
    assert "secret" not in str(names)


def test_a_method_that_a_client_makes_up_is_no_name():
    names = name_http(SERVER, HttpRequest("PURGE", "/made-up"), 404, "")
    assert names.name == "HTTP"
    assert names.attributes["http.request.method"] == "_OTHER"
    assert names.attributes["http.request.method_original"] == "PURGE"
    assert "http.route" not in names.attributes


def test_what_is_no_request_has_a_status_alone():
    names = name_http(SERVER, None, 400, "")
    assert names.name == "HTTP"
    assert set(names.attributes) == {
        "http.response.status_code", "url.scheme", "server.address", "server.port",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("status", "error"), [(200, None), (404, None), (429, None), (500, "500"), (503, "503")]
)
def test_a_status_of_the_server_s_fault_is_an_error(status, error):
    names = name_http(SERVER, HttpRequest("GET", "/"), status, "/")
    assert (names.attributes.get("error.type"), names.has_failed) == (error, error is not None)
    assert names.attributes["http.response.status_code"] == status


def test_a_client_that_hung_up_was_sent_no_status():
    names = name_http(SERVER, HttpRequest("GET", "/"), 499, "/")
    assert (names.attributes["error.type"], names.has_failed) == ("client_hung_up", True)
    assert "http.response.status_code" not in names.attributes
