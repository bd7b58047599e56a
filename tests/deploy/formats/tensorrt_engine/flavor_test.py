import importlib
import sys
import types
from importlib.machinery import ModuleSpec

import pytest

from keras_deepseek.deploy.formats.tensorrt_engine.flavor import (
    check_capabilities,
    check_turing,
    find_flavor,
)
from keras_deepseek.errors import (
    InvalidInputError,
    MissingExtraError,
    NotSupportedError,
)


def module(name):
    fake_module = types.ModuleType(name)
    fake_module.__version__, fake_module.__spec__ = "1.2", ModuleSpec(name, None)
    return fake_module


@pytest.fixture
def installed(monkeypatch, num_gpus):
    """Returns a function that says which of the libraries are installed, and how many GPUs are."""

    def say(names, count):
        num_gpus(count)
        modules = {name: module(name) for name in names}
        original = importlib.import_module

        def import_module(name):
            if name in ("tensorrt", "tensorrt_rtx") and name not in modules:
                raise ImportError(name)
            return modules.get(name) or original(name)

        monkeypatch.setattr(importlib, "import_module", import_module)
        spec_of = {name: modules[name].__spec__ for name in modules}
        monkeypatch.setattr(importlib.util, "find_spec", spec_of.get)
        for name in ("tensorrt", "tensorrt_rtx"):
            monkeypatch.delitem(sys.modules, name, raising=False)

    return say


@pytest.mark.parametrize(
    ("names", "count", "wants_capabilities", "expected"),
    [
        (["tensorrt", "tensorrt_rtx"], 1, False, "tensorrt"),
        (["tensorrt", "tensorrt_rtx"], 0, False, "rtx"),
        (["tensorrt", "tensorrt_rtx"], 1, True, "rtx"),
        (["tensorrt_rtx"], 1, False, "rtx"),
        (["tensorrt"], 2, False, "tensorrt"),
    ],
)
def test_auto_takes_plain_tensorrt_where_a_gpu_is(
    installed, names, count, wants_capabilities, expected
):
    installed(names, count)
    assert find_flavor("auto", wants_capabilities=wants_capabilities).name == expected


@pytest.mark.parametrize("names", [[], ["tensorrt"]])
def test_auto_asks_for_rtx_where_nothing_can_build(installed, names):
    installed(names, 0)
    with pytest.raises(MissingExtraError, match=r"keras_deepseek\[tensorrt-rtx\]"):
        find_flavor("auto", wants_capabilities=False)


def test_the_missing_library_is_named_with_where_it_is_from(installed):
    installed([], 1)
    with pytest.raises(MissingExtraError, match=r"pypi\.nvidia\.com.*keras_deepseek\[tensorrt\]"):
        find_flavor("tensorrt", wants_capabilities=False)
    with pytest.raises(MissingExtraError, match=r"keras_deepseek\[tensorrt-rtx\]"):
        find_flavor("rtx", wants_capabilities=True)


def test_plain_tensorrt_needs_a_gpu(installed):
    installed(["tensorrt"], 0)
    with pytest.raises(NotSupportedError, match=r"no GPU is visible here.*flavor='rtx'"):
        find_flavor("tensorrt", wants_capabilities=False)


def test_plain_tensorrt_builds_for_no_other_gpu(installed):
    installed(["tensorrt"], 1)
    with pytest.raises(InvalidInputError, match="takes no compute_capabilities="):
        find_flavor("tensorrt", wants_capabilities=True)


def test_an_unknown_flavor_gets_the_nearest_one():
    with pytest.raises(InvalidInputError, match="did you mean 'tensorrt'"):
        find_flavor("tensorrrt", wants_capabilities=False)


def test_a_release_says_which_library_it_is_of(installed):
    installed(["tensorrt", "tensorrt_rtx"], 1)
    assert find_flavor("tensorrt", wants_capabilities=False).release == "TensorRT 1.2"
    assert find_flavor("rtx", wants_capabilities=False).release == "TensorRT-RTX 1.2"


class ComputeCapability:
    NONE, CURRENT, SM120, SM75, SM86, SM89 = range(6)


RTX = types.SimpleNamespace(__version__="1.7", ComputeCapability=ComputeCapability)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        (("86",), ("86",)),
        (["8.9", "SM120", 86, "sm_86"], ("89", "120", "86")),
        ((), ()),
    ],
)
def test_a_capability_is_named_as_people_name_it(capabilities, expected):
    assert check_capabilities(capabilities, RTX) == expected


@pytest.mark.parametrize("capability", ["90", "100", "80", "none", "CURRENT", "", 8.95])
def test_one_that_it_can_not_build_for_is_refused_with_those_that_it_can(capability):
    with pytest.raises(InvalidInputError, match=r"RTX 1\.7 can't .* can for 75, 86, 89, 120\."):
        check_capabilities(("86", capability), RTX)


@pytest.mark.parametrize("capabilities", ["86", 86])
def test_one_alone_is_no_sequence(capabilities):
    with pytest.raises(InvalidInputError, match=r"as in \('86', '89'\); received"):
        check_capabilities(capabilities, RTX)


def test_turing_stands_alone():
    assert check_capabilities(("75", "7.5"), RTX) == ("75",)
    with pytest.raises(InvalidInputError, match=r"received 75, 86\. .*any of 86, 89, 120"):
        check_capabilities(("75", "86"), RTX)


@pytest.mark.parametrize("precision", [None, "bfloat16", "int8"])
def test_turing_computes_in_float16_alone(precision):
    with pytest.raises(InvalidInputError, match=r"Pass precision='float16', or .* of 86, 89, 120"):
        check_turing(RTX, precision)
