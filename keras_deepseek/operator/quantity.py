"""Kubernetes quantities, such as `500m` and `2Gi`."""

import math
import re
from decimal import Decimal

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
