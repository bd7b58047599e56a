import sys
from importlib.util import find_spec

import numpy as np
import pytest

from keras_deepseek.backend.runtimes.tensorrt_engine import libraries
from keras_deepseek.backend.runtimes.tensorrt_engine.engine_runner import DeviceMemory, empty_array
from keras_deepseek.errors import ExportError, NotSupportedError


def test_an_array_goes_there_and_back(cuda):
    source, result = np.arange(6.0, dtype="float32"), np.zeros(6, "float32")
    expected = source.copy()
    with DeviceMemory() as memory:
        memory.put("x", source)
        source[:] = 0  # Its owner may change it before the stream has begun.
        memory.fetch("x", result)
        assert not result.any()
        memory.synchronize()
    np.testing.assert_array_equal(result, expected)


def test_a_buffer_is_kept_and_grows_where_more_is_asked_for(cuda):
    with DeviceMemory() as memory:
        address = memory.reserve("x", 8)
        assert memory.reserve("x", 3) == memory.reserve("x", 8) == address
        assert cuda.num_reserved == 1
        memory.reserve("x", 9)
        assert (cuda.num_reserved, list(map(len, cuda.memory.values()))) == (2, [9])
        memory.reserve("empty", 0)
        memory.put("nothing", np.empty((0, 3), "float32"))
        assert len(cuda.memory) == 3
    assert (cuda.memory, cuda.streams) == ({}, {})


def test_all_is_given_back_whatever_happens_and_once(cuda):
    with pytest.raises(ZeroDivisionError), DeviceMemory() as memory:
        _ = memory.reserve("x", 5) // 0
    assert (cuda.memory, cuda.streams) == ({}, {})
    memory.close()


def test_all_is_given_back_when_nobody_holds_it_any_more(cuda):
    memory = DeviceMemory()
    memory.put("x", np.ones(5))
    del memory
    assert (cuda.memory, cuda.streams) == ({}, {})


def test_each_has_a_stream_of_its_own(cuda):
    with DeviceMemory() as first, DeviceMemory() as second:
        assert set(cuda.streams) == {first.stream, second.stream}
        assert first.reserve("x", 4) != second.reserve("x", 4)


def test_an_error_of_cuda_is_raised(cuda):
    cuda.failing = {"cudaMalloc"}
    with (
        pytest.raises(ExportError, match="cudaMalloc failed: cudaErrorMemory"),
        DeviceMemory() as memory,
    ):
        memory.reserve("x", 5)


def test_a_buffer_that_can_not_grow_is_gone_and_asked_for_again(cuda):
    cuda.capacity = 10
    with DeviceMemory() as memory:
        memory.reserve("x", 5)
        with pytest.raises(ExportError, match="cudaMalloc failed"):
            memory.reserve("x", 50)
        assert memory.reserve("x", 5) in cuda.memory


def test_without_cuda_python_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(NotSupportedError, match="pip install cuda-python"):
        DeviceMemory()


@pytest.mark.skipif(find_spec("cuda") is None, reason="cuda-python is not installed")
def test_the_real_cuda_python_takes_these_calls():
    """Without a driver it refuses each, and takes its arguments."""
    if libraries.count_gpus():
        with DeviceMemory() as memory:
            source, result = np.arange(6.0), np.empty(6)
            memory.put("x", source)
            memory.fetch("x", result)
            memory.synchronize()
        np.testing.assert_array_equal(result, source)
        return
    with pytest.raises(ExportError, match="cudaStreamCreateWithFlags failed: cudaError"):
        DeviceMemory()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool"])
def test_an_array_of_any_dtype_can_be_fetched(dtype):
    array = empty_array((2, 3), dtype)
    assert (array.shape, str(array.dtype)) == ((2, 3), dtype)
