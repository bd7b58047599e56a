import inspect

import pytest

from keras_deepseek.deploy.formats.export_format import ExportFormat, run_format
from keras_deepseek.deploy.formats.registry import BUILT_IN
from keras_deepseek.errors import ExportError


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


def test_a_run_that_returns_nothing_is_an_error(tmp_path, weights_format):
    class Forgetful(weights_format):
        def run(self, folder, samples):
            pass

    with pytest.raises(ExportError, match="returned NoneType; expected a list"):
        run_format(Forgetful(), tmp_path, [])
