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
