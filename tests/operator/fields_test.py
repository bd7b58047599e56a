"""The types of fields: the values that they take, and those that they refuse."""

from decimal import Decimal

import pytest
from pydantic import ConfigDict, TypeAdapter, ValidationError

from keras_deepseek.operator.fields import (
    Count,
    Part,
    Quantity,
    Target,
    Text,
    canonical_quantity,
    quantity_value,
)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Quantity, [2, "500m", "2Gi", "0"], ["2 Gi", "-1", "1x", ""]),
        (Target, [1000, "1k", "50m"], [0, "0", "0m", "-1"]),
        (Part, [0, 3, "25%"], ["25", True, "half", "%"]),
        (Count, [0, 10_000], [-1, 10_001, "3", True]),
        (Text, ["a"], ["", "a" * 1025]),
    ],
)
def test_a_field_takes_good_values_and_refuses_others(kind, good, bad):
    adapter = TypeAdapter(kind, config=ConfigDict(strict=True))
    for value in good:
        assert adapter.validate_python(value) == value
    for value in bad:
        with pytest.raises(ValidationError):
            adapter.validate_python(value)


@pytest.mark.parametrize(
    ("quantity", "written"),
    [
        (1000, "1k"),
        ("1500", "1500"),
        ("0.05", "50m"),
        ("1000m", "1"),
        ("1024Mi", "1Gi"),
        ("1.5Gi", "1536Mi"),
        ("512Ki", "512Ki"),
        ("0.5Ki", "512"),
        ("2000000", "2M"),
        (0, "0"),
        ("0.0001", "100u"),
        ("0.0000000001", "1n"),
    ],
)
def test_writes_as_the_api_server_does(quantity, written):
    assert canonical_quantity(quantity) == written


def test_a_quantity_stands_for_a_number():
    assert quantity_value("500m") == Decimal("0.5")
    assert quantity_value("2Gi") == 2 * 2**30


@pytest.mark.parametrize("text", ["", "x", "1x", "-1", "1 Gi"])
def test_refuses_what_is_no_quantity(text):
    with pytest.raises(ValueError, match="is not a quantity"):
        quantity_value(text)


@pytest.mark.parametrize("quantity", ["9" * 32 + "Ei", 10**40, "9223372036854775808"])
def test_refuses_what_is_above_the_largest_quantity(quantity):
    with pytest.raises(ValueError, match="is above 2"):
        canonical_quantity(quantity)
    assert canonical_quantity("9223372036854775807") == "9223372036854775807"
