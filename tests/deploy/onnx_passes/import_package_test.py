import json

import pytest

from keras_deepseek.deploy.onnx_passes.graph_view import import_package
from keras_deepseek.errors import MissingExtraError


def test_what_is_installed_is_imported():
    assert import_package("json") is json


def test_what_is_missing_names_its_extra():
    with pytest.raises(MissingExtraError, match=r"`not_there` .*keras_deepseek\[onnx\]"):
        import_package("not_there.inner")
