import pytest

from keras_deepseek import backend


def test_there_is_a_cpu():
    assert backend.current().count_devices("cpu") >= 1


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_an_absent_kind_counts_as_none(kind):
    assert backend.current().count_devices(kind) >= 0
