"""The types of the fields of a `ModelDeployment`: checks, schemas in the CRD, and quantities."""

import math
import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, Field

_DECIMAL = {unit: Decimal(1000) ** (power - 3) for power, unit in enumerate("num_kMGTPE")}
_DECIMAL[""] = _DECIMAL.pop("_")
_BINARY = {f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", 1)}

PATTERN = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([numkMGTPE]|[KMGTPE]i)?$"
"""A quantity as text. It is also a pattern of OpenAPI."""

_LARGEST = 2**63 - 1


def quantity_value(quantity: str | int) -> Decimal:
    """Returns the number that a quantity stands for.

    Raises:
        ValueError: It is not a quantity, or above the largest one of Kubernetes.
    """
    match = re.match(PATTERN, str(quantity))
    if match is None:
        raise ValueError(f"{quantity!r} is not a quantity. Write a number, as 1000, 500m or 2Gi")
    value = Decimal(match[1]) * (_DECIMAL | _BINARY)[match[3] or ""]
    if value > _LARGEST:
        raise ValueError(f"{quantity!r} is above 2**63 - 1, the largest quantity")
    return value


def canonical_quantity(quantity: str | int) -> str:
    """Returns a quantity as the API server writes it, as `"1k"` for `1000`.

    An apply of another spelling would be a change each time.
    """
    value = quantity_value(quantity)
    is_binary = str(quantity).endswith("i") and value >= _BINARY["Ki"]
    # A number between two units is written in the smaller one, rounded up in the smallest.
    units = {"": Decimal(1), **_BINARY} if is_binary else _DECIMAL
    sizes = sorted(units.items(), key=lambda unit: unit[1])
    fitting = [(unit, size) for unit, size in sizes if value and value % size == 0]
    unit, size = fitting[-1] if fitting else sizes[0]
    return f"{math.ceil(value / size)}{unit}" if value else "0"


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
