import ctypes

import pytest

from keras_deepseek.backend.runtimes.tensorrt_engine import visible_gpus


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
    assert visible_gpus.count_gpus() == expected


def test_without_a_driver_there_are_none(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert visible_gpus.count_gpus() == 0
