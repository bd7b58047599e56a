"""Tools for testing layers. Library code never imports them."""

from keras_deepseek.testing.layer_test_case import LayerTestCase
from keras_deepseek.testing.tolerances import TOLERANCES, assert_close

__all__ = ["TOLERANCES", "LayerTestCase", "assert_close"]


def __dir__() -> list[str]:
    return sorted(__all__)
