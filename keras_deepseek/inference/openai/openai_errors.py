"""OpenAI's error object, and the names of fields in errors."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from keras_deepseek.errors import InvalidFieldError, InvalidInputError
from keras_deepseek.inference.errors import ModelNotFoundError

_TYPES = {
    401: ("authentication_error", "invalid_api_key"),
    403: ("permission_error", None),
    404: ("invalid_request_error", "model_not_found"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    503: ("service_unavailable_error", None),
    504: ("timeout_error", "deadline_exceeded"),
}
_SERVER_ERROR = 500


def error_object(message: str, status: int, field: str | None, code: str | None) -> dict[str, Any]:
    """Returns OpenAI's error object. `field` is a path, as in `"messages[2].role"`.

    `code` is the error's own, or `None` for that of the status.
    """
    is_of_server = status >= _SERVER_ERROR
    default = ("server_error" if is_of_server else "invalid_request_error", None)
    kind, status_code = _TYPES.get(status, default)
    error = {"message": message, "type": kind, "param": field, "code": code or status_code}
    return {"error": error}


def field_of(error: Exception) -> str | None:
    """Returns the path of the field that an error is about, or `None`."""
    if isinstance(error, ModelNotFoundError):
        return "model"
    return error.field if isinstance(error, InvalidFieldError) else None


@contextmanager
def naming_field(name: str) -> Iterator[None]:
    """Context manager that names the field of errors that have none."""
    try:
        yield
    except InvalidFieldError:
        raise
    except InvalidInputError as error:
        raise InvalidFieldError(name, str(error)) from error


@contextmanager
def renaming_fields(names: Mapping[str, str]) -> Iterator[None]:
    """Context manager that gives errors the client's names of fields: `names` has them by ours."""
    try:
        yield
    except InvalidFieldError as error:
        name = names.get(error.field)
        if name is None:
            raise
        raise InvalidFieldError(
            name, str(error).replace(f"`{error.field}`", f"`{name}`"), error.code
        ) from error
