import json
import logging

import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference.errors import (
    ClosedError,
    DeadlineExceededError,
    LoadFailedError,
    ModelNotFoundError,
    OverloadedError,
)
from keras_deepseek.inference.http.answers import answer_error, read_version
from keras_deepseek.inference.http.message import HttpError


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (HttpError(418, "tea"), 418),
        (InvalidInputError("no"), 400),
        (ModelNotFoundError("no"), 404),
        (OverloadedError("no", 3.0), 429),
        (ClosedError("no"), 503),
        (DeadlineExceededError("no"), 504),
        (LoadFailedError("digits"), 500),
    ],
)
def test_a_client_s_error_is_told_with_its_status(error, status):
    response = answer_error(error)
    assert response.status == status
    assert json.loads(response.body) == {"error": str(error)}


def test_an_overload_says_when_to_try_again():
    assert answer_error(OverloadedError("no", 2.5)).headers == (("retry-after", "3"),)


def test_another_error_is_logged_and_not_shown(caplog):
    with caplog.at_level(logging.ERROR):
        response = answer_error(ZeroDivisionError("a secret"))
    assert response.status == 500
    assert b"secret" not in response.body
    assert "a secret" in caplog.text


@pytest.mark.parametrize("text", ["x", "-1", "1.0", "9" * 20, "\u0661x"])
def test_a_version_that_is_no_number_leads_nowhere(text):
    with pytest.raises(HttpError, match="Expected a number") as caught:
        read_version({"version": text})
    assert caught.value.status == 404


def test_a_version_is_a_number_or_not_named():
    assert read_version({"version": "7"}) == 7
    assert read_version({}) is None
