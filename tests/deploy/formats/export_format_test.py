import inspect

import numpy as np
import pytest

from keras_deepseek.deploy.formats.export_format import ExportFormat, run_format
from keras_deepseek.errors import ExportError, NotSupportedError


def test_a_format_has_to_write_and_to_run():
    class WriteOnly(ExportFormat):
        def write(self, model, folder):
            return "nothing"

    with pytest.raises(TypeError, match=r"abstract method '?run"):
        WriteOnly()
    members = {"write", "run"}
    assert {name for name in dir(ExportFormat) if _is_abstract(name)} == members


def _is_abstract(name):
    return getattr(inspect.getattr_static(ExportFormat, name), "__isabstractmethod__", False)


def test_everything_else_has_a_default(weights_format, tmp_path, dense):
    export_format = weights_format()
    assert (export_format.backends, export_format.packages, export_format.source) == ((), {}, "")
    assert export_format.sample_shapes(None) == ()
    assert export_format.takes(None, {})
    with pytest.raises(NotSupportedError, match="'weights' has no `load`"):
        export_format.load(tmp_path)
    with pytest.raises(NotSupportedError, match="'weights' has no `build`"):
        export_format.build(tmp_path, tmp_path, None, None)


@pytest.mark.parametrize(
    ("outputs", "match"),
    [
        (None, "returned NoneType; expected a list"),
        ([np.ones(1)], r"returned a list with array\(\[1\.\]\); expected .*dict of NumPy arrays"),
        ([], r"returned 0 batches; .* for each of the 2 batches"),
        ([{"y": [[1.0]]}], r"returned a list with {'y': \[\[1\.0\]\]}; expected"),
    ],
)
def test_a_run_that_returns_something_else_is_an_error(tmp_path, weights_format, outputs, match):
    class Wrong(weights_format):
        def run(self, folder, samples):
            return outputs

    with pytest.raises(ExportError, match=match):
        run_format(Wrong(), tmp_path, [{}, {}])
