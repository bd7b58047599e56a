from keras_deepseek.inference.http.message import HttpError, HttpRequest


def test_messages_share_no_headers():
    assert HttpRequest("GET", "/").headers is not HttpRequest("GET", "/").headers


def test_an_error_holds_what_the_client_is_told():
    error = HttpError(429, "Later.", (("retry-after", "1"),))
    assert (error.status, str(error), error.headers) == (429, "Later.", (("retry-after", "1"),))
