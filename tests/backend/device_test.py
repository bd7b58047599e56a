import keras
import numpy as np
import pytest

from keras_deepseek import backend


def test_there_is_a_cpu():
    assert backend.current().count_devices("cpu") >= 1


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_an_absent_kind_counts_as_none(kind):
    assert backend.current().count_devices(kind) >= 0


def test_a_cpu_has_no_name_and_no_allocator_that_counts():
    current = backend.current()
    if current.count_devices("gpu") or current.count_devices("tpu"):
        memory = current.read_device_memory()
        assert memory["in_use"] <= memory["peak"]
        assert current.read_device_name()
    else:
        assert current.read_device_memory() is None
        assert current.read_device_name() is None


def test_variables_are_created_and_computed_with_on_a_device():
    with backend.current().on_device("cpu:0"):
        variable = keras.Variable([1.0, 2.0])
        result = keras.ops.convert_to_tensor(variable) + 1
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(result), [2, 3])


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="Others know the CPU by one name.")
def test_nothing_is_copied_to_where_it_is():
    import torch

    value = torch.ones(2)
    with backend.current().on_device("cpu:0"):
        assert keras.ops.convert_to_tensor(value).data_ptr() == value.data_ptr()
        assert isinstance(keras.Variable([1.0]).value, torch.nn.Parameter)
