import inspect

import pytest

from keras_deepseek.deploy.formats.export_format import ExportFormat
from keras_deepseek.deploy.formats.format_list import FLAGS, FORMATS, INT8_FORMATS, _read_profile
from keras_deepseek.errors import InvalidInputError


@pytest.mark.parametrize("name", FORMATS)
def test_an_entry_agrees_with_its_class(name):
    entry, loaded = FORMATS[name], FORMATS[name].load()
    assert issubclass(loaded, ExportFormat)
    assert (loaded.name, loaded.suffix) == (name, entry.suffix)
    for method in ("write", "run", "load", "check_signature", "check_backend"):
        expected = inspect.signature(getattr(ExportFormat, method))
        assert inspect.signature(getattr(loaded, method)) == expected
    options = [*inspect.signature(loaded).parameters]
    if loaded.source:
        options += inspect.signature(FORMATS[loaded.source].load()).parameters
    assert {flag.option for flag in entry.flags} <= set(options)


def test_formats_share_flags():
    assert [flag.flag for flag in FLAGS].count("--opset") == 1
    assert INT8_FORMATS == ("onnx", "tensorrt", "litert")


@pytest.mark.parametrize("text", ["batch", "batch=", "batch=1,x,3"])
def test_sizes_that_can_not_be_read_are_shown(text):
    with pytest.raises(InvalidInputError, match=r"as in batch=1,4,32; received 'batch"):
        _read_profile([text])
