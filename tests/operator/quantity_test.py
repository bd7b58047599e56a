"""Quantities against the forms that a real API server wrote."""

from decimal import Decimal

import pytest

from keras_deepseek.operator.quantity import canonical_quantity, quantity_value


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


def test_values():
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
