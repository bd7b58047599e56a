"""The types of the fields of a `ModelDeployment`: their checks, and their schemas in the CRD."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from keras_deepseek.operator.quantity import PATTERN, quantity_value

_INT_OR_STRING = {
    "x-kubernetes-int-or-string": True,
    "anyOf": [{"type": "integer"}, {"type": "string"}],
    "minimum": 0,
}
_PERCENT = r"^[0-9]+%$"
_FREE = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def _is_quantity(quantity: str | int) -> str | int:
    quantity_value(quantity)
    return quantity


def _is_part(part: int | str) -> int | str:
    is_number = isinstance(part, int) and part >= 0
    if not is_number and not re.fullmatch(_PERCENT, str(part)):
        raise ValueError(f"must be a number or a percentage such as 25%, received {part!r}")
    return part


def _is_positive(quantity: str | int) -> str | int:
    if quantity_value(quantity) <= 0:
        raise ValueError(f"must be above zero, received {quantity!r}")
    return quantity


_POSITIVE = {
    "rule": "type(self) == int ? self > 0 : self.matches('[1-9]')",
    "message": "must be above zero",
}

Quantity = Annotated[
    int | str,
    AfterValidator(_is_quantity),
    Field(json_schema_extra={**_INT_OR_STRING, "pattern": PATTERN, "maxLength": 32}),
]
Target = Annotated[
    int | str,
    AfterValidator(_is_positive),
    Field(
        json_schema_extra={
            **_INT_OR_STRING,
            "pattern": PATTERN,
            "maxLength": 32,
            "x-kubernetes-validations": [_POSITIVE],
        }
    ),
]
Part = Annotated[
    int | str,
    AfterValidator(_is_part),
    Field(json_schema_extra={**_INT_OR_STRING, "pattern": _PERCENT, "maxLength": 8}),
]
Count = Annotated[int, Field(ge=0, le=10_000)]
Text = Annotated[str, Field(min_length=1, max_length=1024)]
Names = Annotated[list[Text], Field(max_length=16)]
FreeObject = Annotated[dict[str, Any], Field(json_schema_extra=_FREE)]
Texts = Annotated[dict[str, str], Field(max_length=32)]
