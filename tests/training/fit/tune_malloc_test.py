import platform
import subprocess
import sys
import threading

import pytest

from keras_deepseek.training.fit import tune_malloc as module
from keras_deepseek.training.fit.tune_malloc import tune_malloc


class Library:
    """A C library that writes down how it is called."""

    def __init__(self):
        self.calls = []

    def mallopt(self, option, value):
        self.calls.append((option, value))
        return 1

    def malloc_trim(self, pad):
        self.calls.append("trim")


@pytest.fixture
def library(monkeypatch):
    library = Library()
    monkeypatch.setattr(module, "_find_library", lambda: library)
    return library


def test_memory_is_kept_and_given_back(library):
    with tune_malloc():
        assert library.calls == [(-4, 0), (-1, -1)]
        library.calls.clear()
    assert library.calls == [(-4, 65_536), (-3, 32 << 20), (-1, 64 << 20), "trim"]


def test_the_last_training_returns_the_memory(library):
    inside, may_end = threading.Event(), threading.Event()

    def train():
        with tune_malloc():
            inside.set()
            may_end.wait(10)

    thread = threading.Thread(target=train)
    thread.start()
    assert inside.wait(10)
    with tune_malloc():
        pass
    assert "trim" not in library.calls
    may_end.set()
    thread.join()
    assert library.calls.count("trim") == 1


def test_an_error_returns_the_memory(library):
    with pytest.raises(ArithmeticError), tune_malloc():
        raise ArithmeticError
    assert library.calls[-1] == "trim"


@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_ARENA_MAX", "2"), ("GLIBC_TUNABLES", "glibc.malloc.perturb=1")],
)
def test_settings_of_the_environment_are_kept(monkeypatch, name, value):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.41"))
    monkeypatch.setenv(name, value)
    assert module._find_library() is None


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with tune_malloc():
        assert module._users == 0


SCRIPT = """
import ctypes, resource
from keras_deepseek.training.fit.tune_malloc import tune_malloc

malloc, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
malloc.restype, free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def count_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        block = malloc(64 << 20)
        ctypes.memset(block, 1, 64 << 20)
        free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

outside = count_faults()
with tune_malloc():
    count_faults()
    inside = count_faults()
print(inside * 10 < outside, count_faults() * 2 > outside)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="Only glibc gives such blocks back.")
@pytest.mark.nightly
def test_pages_are_not_cleared_again(monkeypatch):
    for name in [name for name in module.os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    command = [sys.executable, "-c", SCRIPT]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "True"]
