"""The description of one API call in the OpenAPI document."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from keras_deepseek.artifacts.signature import Signature

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
LIST: Schema = {"type": "array"}
OBJECT: Schema = {"type": "object"}


class Operation(NamedTuple):
    """The OpenAPI description of a call: one path and one method.

    `openapi` makes its part of the document.

    Args:
        answer: The JSON schema of the answer.
        answer_type: The content type of the answer.
        other_answers: Schemas by further content types of the answer.
        answer_503: The schema of the answer with the status 503. `None`: it is an error.
        body: The schema of the request's body. `None`: it has none.
    """

    summary: str
    answer: Schema
    answer_type: str = "application/json"
    other_answers: Mapping[str, Schema] = {}
    answer_503: Schema | None = None
    body: Schema | None = None
    is_body_optional: bool = False


class ErrorForm(NamedTuple):
    """The JSON in which a protocol answers errors.

    Args:
        name: The name of the schema in the OpenAPI document.
        schema: The JSON schema of what `make` returns.
        make: Returns the content of the answer, from the message and the HTTP status.
    """

    name: str
    schema: Schema
    make: Callable[[str, int], Any]


DescribeModel = Callable[[str, Signature], Operation | None]
"""Returns the operation of the model with a name and a signature. `None`: it can't answer it."""


def fields(required: Mapping[str, Schema], **optional: Schema) -> Schema:
    """Returns the JSON schema of an object with the given fields."""
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
    }


ERROR = ErrorForm("Error", fields({"error": TEXT}), lambda message, _status: {"error": message})
"""The form of errors for routes that set no other."""
