import gc
from pathlib import Path

import keras
import ml_dtypes
import numpy as np
import pytest

from keras_deepseek.backend import array_pieces, current


def numbers(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("source_dtype", ["float32", "float16", "bfloat16", "float64"])
def test_values_come_in_every_dtype(dtype, source_dtype):
    variable = keras.Variable(np.zeros((3, 5)), dtype=dtype)
    there = {"bfloat16": ml_dtypes.bfloat16}
    source = numbers(3, 5).astype(there.get(source_dtype, source_dtype))
    current().assign_array(variable, source)
    expected = source.astype(there.get(dtype, dtype))
    assert variable.dtype == dtype
    assert np.array_equal(
        keras.ops.convert_to_numpy(variable).astype("float32"), expected.astype("float32")
    )


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (7,), (7, 3), (2, 3, 4)])
def test_values_come_in_pieces(shape, monkeypatch):
    monkeypatch.setattr(array_pieces, "PIECE_BYTES", 16)
    variable = keras.Variable(np.zeros(shape, "float32"))
    current().assign_array(variable, numbers(*shape))
    assert np.array_equal(keras.ops.convert_to_numpy(variable), numbers(*shape))


def test_integers_come_as_they_are():
    variable = keras.Variable(np.zeros(4), dtype="int32", trainable=False)
    current().assign_array(variable, np.arange(4))
    assert keras.ops.convert_to_numpy(variable).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("view", [np.transpose, np.flipud, lambda x: x[:, ::2]])
def test_a_view_is_read_in_its_own_order(view):
    source = numbers(4, 6)
    variable = keras.Variable(np.zeros(view(source).shape, "float32"))
    current().assign_array(variable, view(source))
    assert np.array_equal(keras.ops.convert_to_numpy(variable), view(source))


def test_the_memory_that_values_came_from_may_change_afterwards():
    source = numbers(64, 64)
    expected = source.copy()
    source.flags.writeable = False
    variable = keras.Variable(np.zeros((64, 64), "float32"))
    current().assign_array(variable, source)
    source.flags.writeable = True
    source[:] = 0.0
    assert np.array_equal(keras.ops.convert_to_numpy(variable), expected)


def test_what_is_read_by_its_indices_is_read_by_pieces(monkeypatch):
    monkeypatch.setattr(array_pieces, "PIECE_BYTES", 64)

    class Source:
        shape, dtype = (6, 4), np.dtype("float32")
        largest = 0

        def __getitem__(self, index):
            piece = numbers(6, 4)[index]
            self.largest = max(self.largest, piece.size)
            return piece

    source = Source()
    variable = keras.Variable(np.zeros((6, 4), "float32"))
    current().assign_array(variable, source)
    assert np.array_equal(keras.ops.convert_to_numpy(variable), numbers(6, 4))
    assert source.largest <= 16


def read_megabytes(name):
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts the peak.")
@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="TensorFlow copies what it is given."
)
def test_the_new_values_never_stand_beside_the_old_ones():
    variable = keras.Variable("ones", shape=(128, 2**18))  # 128 MiB.
    source = np.broadcast_to(np.arange(2**18, dtype="float32"), (128, 2**18))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = read_megabytes("VmRSS")
    current().assign_array(variable, source)
    assert read_megabytes("VmHWM") - before < 64
    assert keras.ops.convert_to_numpy(variable)[-1, -1] == 2**18 - 1
