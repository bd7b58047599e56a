import sys
import types

import pytest

from keras_deepseek.backend.runtimes.tensorrt_engine.libraries import (
    MODULES,
    import_library,
    mark_flavor,
    read_flavor,
)
from keras_deepseek.errors import InvalidInputError, MissingExtraError


@pytest.mark.parametrize("flavor", MODULES)
def test_a_route_says_who_built_an_engine(flavor):
    assert read_flavor(f"tf2onnx, TensorRT 10.1 {mark_flavor(flavor)} for SM86") == flavor


@pytest.mark.parametrize("route", ["", "flavor rtx", "(flavor other)"])
def test_a_route_that_does_not_say_is_refused(route):
    with pytest.raises(InvalidInputError, match=r"does not say which of TensorRT, TensorRT-RTX"):
        read_flavor(route)


@pytest.mark.parametrize(("flavor", "extra"), [("tensorrt", "tensorrt"), ("rtx", "tensorrt-rtx")])
def test_a_library_is_imported_or_its_extra_named(monkeypatch, flavor, extra):
    library = types.ModuleType(MODULES[flavor])
    monkeypatch.setitem(sys.modules, MODULES[flavor], library)
    assert import_library(flavor, "to serve an engine") is library
    monkeypatch.setitem(sys.modules, MODULES[flavor], None)
    with pytest.raises(MissingExtraError, match=rf"to serve an engine.*keras_deepseek\[{extra}\]"):
        import_library(flavor, "to serve an engine")
