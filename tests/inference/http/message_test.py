from keras_deepseek.inference.http.message import HttpError, HttpRequest, HttpResponse


def test_messages_have_what_is_left_out():
    request = HttpRequest("GET", "/healthz")
    assert (request.headers, request.body, request.peer_subject) == ({}, b"", ())
    assert request.keep_alive
    response = HttpResponse(body=b"{}")
    assert (response.status, response.content_type) == (200, "application/json")


def test_messages_share_no_headers():
    assert HttpRequest("GET", "/").headers is not HttpRequest("GET", "/").headers


def test_an_error_holds_what_the_client_is_told():
    error = HttpError(429, "Later.", (("retry-after", "1"),))
    assert (error.status, str(error), error.headers) == (429, "Later.", (("retry-after", "1"),))
