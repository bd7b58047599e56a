import json

import pytest

from keras_deepseek.deploy.import_extra import import_extra
from keras_deepseek.errors import MissingExtraError


def test_what_is_installed_is_imported():
    assert import_extra("json", "onnx", "to read") is json


def test_what_is_missing_names_its_package_and_extra():
    with pytest.raises(MissingExtraError, match=r"`not_there` is needed to fly .*\[wings\]"):
        import_extra("not_there.inner", "wings", "to fly")
