import ctypes
import sys
import types

import pytest

from keras_deepseek.backend.runtimes.tensorrt_engine import libraries
from keras_deepseek.backend.runtimes.tensorrt_engine.libraries import (
    MODULES,
    import_library,
    make_error_log,
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


def test_errors_are_kept_and_warnings_are_not(plain_tensorrt, capsys):
    log = make_error_log(plain_tensorrt)
    for name in ("INTERNAL_ERROR", "ERROR", "WARNING"):
        log.log(plain_tensorrt.Severity[name], name)
    assert log.errors == ["INTERNAL_ERROR", "ERROR"]
    assert capsys.readouterr() == ("", "")


def test_one_log_knows_nothing_of_another(plain_tensorrt):
    first, second = make_error_log(plain_tensorrt), make_error_log(plain_tensorrt)
    first.log(plain_tensorrt.Severity.ERROR, "of the first")
    assert second.errors == []


class Driver:
    """CUDA's driver as ctypes shows it: a call gives a code, and 0 is success."""

    def __init__(self, count, init_code=0, count_code=0):
        self.count, self.init_code, self.count_code = count, init_code, count_code

    def cuInit(self, flags):  # noqa: N802
        return self.init_code

    def cuDeviceGetCount(self, pointer):  # noqa: N802
        pointer._obj.value = self.count
        return self.count_code


@pytest.mark.parametrize(
    ("driver", "expected"),
    [(Driver(2), 2), (Driver(0), 0), (Driver(2, init_code=100), 0), (Driver(2, count_code=3), 0)],
)
def test_the_driver_counts(monkeypatch, driver, expected):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert libraries.count_gpus() == expected


def test_without_a_driver_there_are_none(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert libraries.count_gpus() == 0
