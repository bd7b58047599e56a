import sys

import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.callbacks import memory
from keras_deepseek.callbacks.memory import read_memory

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows says nothing of it.")


def test_memory_that_is_filled_shows():
    before = read_memory()["process_memory_bytes"]
    held = np.ones(2**24)  # 128 MiB
    # The system may take other pages of a large process away meanwhile: it took a tenth.
    assert read_memory()["process_memory_bytes"] - before > 0.5 * held.nbytes


def test_without_a_proc_folder_the_peak_is_read(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "nothing")
    assert read_memory()["process_memory_bytes"] > 2**20


def test_an_accelerator_counts_where_there_is_one(monkeypatch):
    devices = backend.current().devices
    monkeypatch.setattr(devices, "read_device_memory", lambda: {"in_use": 7, "peak": 9})
    assert read_memory()["device_memory_bytes"] == 7
