import pytest

from keras_deepseek.inference.http.http_application import name_spans
from keras_deepseek.inference.http.message import HttpRequest


def test_a_request_is_called_by_its_method_and_the_form_of_its_path():
    request = HttpRequest(
        "GET",
        "/v1/models/a",
        {"user-agent": "u" * 2000},
        scheme="https",
        server=("::1", 8501),
        route="/v1/models/{name}",
    )
    names = name_spans(request, 200)
    assert (names.name, names.has_failed) == ("GET /v1/models/{name}", False)
    assert len(names.attributes["user_agent.original"]) == 1024
    assert names.attributes["url.scheme"] == "https"
    assert names.attributes["server.port"] == 8501


def test_a_method_that_a_client_makes_up_is_no_name():
    names = name_spans(HttpRequest("PURGE", "/made-up"), 404)
    assert names.name == "HTTP"
    assert names.attributes["http.request.method"] == "_OTHER"
    assert names.attributes["http.request.method_original"] == "PURGE"
    assert "http.route" not in names.attributes


def test_what_is_no_request_has_a_status_alone():
    names = name_spans(HttpRequest("", ""), 400)
    assert names.name == "HTTP"
    assert names.attributes == {"http.response.status_code": 400}


@pytest.mark.parametrize(
    ("status", "error"), [(200, None), (404, None), (429, None), (500, "500"), (503, "503")]
)
def test_a_status_of_the_server_s_fault_is_an_error(status, error):
    names = name_spans(HttpRequest("GET", "/"), status)
    assert (names.attributes.get("error.type"), names.has_failed) == (error, error is not None)
    assert names.attributes["http.response.status_code"] == status


def test_a_client_that_hung_up_was_sent_no_status():
    names = name_spans(HttpRequest("GET", "/"), 499)
    assert (names.attributes["error.type"], names.has_failed) == ("client_hung_up", True)
    assert "http.response.status_code" not in names.attributes
