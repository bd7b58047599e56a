import pytest

from keras_deepseek.backend import known_packages
from keras_deepseek.graph import known_code


@pytest.fixture(autouse=True)
def _layers_of_the_tests_are_known(monkeypatch):
    """The passes are shown on layers that the tests write, as if they were this package's."""
    known_code._find_foreign_methods.cache_clear()
    monkeypatch.setattr(known_packages, "_KNOWN", {*known_packages._KNOWN, "tests"})
    yield
    known_code._find_foreign_methods.cache_clear()
