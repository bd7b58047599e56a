import sys

import numpy as np
import pytest

from keras_deepseek.artifacts.errors import ExportError, NotSupportedError
from keras_deepseek.deploy.tensorrt_engine.device_memory import DeviceMemory, empty_array


def test_an_array_goes_there_and_back(cuda):
    given, got = np.arange(6.0, dtype="float32"), np.empty(6, "float32")
    with DeviceMemory() as memory:
        memory.fetch(memory.put(given), got)
    np.testing.assert_array_equal(got, given)


def test_memory_is_given_back_when_asked_and_in_the_end(cuda):
    with DeviceMemory() as memory:
        memory.reserve(5)
        assert len(cuda.memory) == 1
        memory.free()
        assert not cuda.memory
        memory.reserve(0)
    assert (cuda.memory, cuda.streams) == ({}, set())


def test_memory_is_given_back_whatever_happens(cuda):
    with pytest.raises(ZeroDivisionError), DeviceMemory() as memory:
        _ = memory.reserve(5) // 0
    assert (cuda.memory, cuda.streams) == ({}, set())


def test_what_cuda_refuses_is_an_error(cuda):
    cuda.failing = {"cudaMalloc"}
    with pytest.raises(ExportError, match=r"cudaMalloc failed: .*2"), DeviceMemory() as memory:
        memory.reserve(5)


def test_without_cuda_python_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(NotSupportedError, match="pip install cuda-python"):
        DeviceMemory()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool"])
def test_an_array_of_any_dtype_can_be_fetched(dtype):
    array = empty_array((2, 3), dtype)
    assert (array.shape, str(array.dtype)) == ((2, 3), dtype)
