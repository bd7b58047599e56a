import inspect

import pytest

from keras_deepseek.deploy.formats.export_format import ExportFormat
from keras_deepseek.deploy.registry import BUILT_IN


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_formats_keep_the_protocol(name):
    export_format = BUILT_IN[name]()
    assert export_format.name == name
    for method in ("write", "run"):
        expected = inspect.signature(getattr(ExportFormat, method))
        received = inspect.signature(getattr(type(export_format), method))
        assert received == expected
    assert isinstance(export_format.suffix, str)
    assert isinstance(export_format.entry, str)
