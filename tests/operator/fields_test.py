"""The types of fields: the values that they take, and those that they refuse."""

import pytest
from pydantic import ConfigDict, TypeAdapter, ValidationError

from keras_deepseek.operator.fields import Count, Part, Quantity, Target, Text


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
def test_values(kind, good, bad):
    adapter = TypeAdapter(kind, config=ConfigDict(strict=True))
    for value in good:
        assert adapter.validate_python(value) == value
    for value in bad:
        with pytest.raises(ValidationError):
            adapter.validate_python(value)
