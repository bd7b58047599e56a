import gc
from pathlib import Path

import keras
import ml_dtypes
import numpy as np
import pytest

from keras_deepseek.backend import current
from keras_deepseek.backend.data import array_pieces


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


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_variable_begins_unset_and_is_updated_as_any_other(dtype):
    variable = keras.Variable(current().unset_initializer(), shape=(3, 5), dtype=dtype)
    assert variable.dtype == dtype
    assert not np.any(keras.ops.convert_to_numpy(variable))
    source = np.arange(15.0).reshape(3, 5)
    current().assign_array(variable, source)
    before = variable.value * 1
    variable.assign_add(keras.ops.ones((3, 5), dtype))
    keras.optimizers.SGD(2.0).apply([keras.ops.ones((3, 5), dtype)], [variable])
    found = keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32"))
    assert np.array_equal(found, source - 1)
    assert np.array_equal(keras.ops.convert_to_numpy(keras.ops.cast(before, "float32")), source)


def read_megabytes(name):
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def measure_peak(function):
    """The megabytes that a function takes at the most, and what it returns."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = read_megabytes("VmRSS")
    result = function()
    return read_megabytes("VmHWM") - before, result


SHAPE = (128, 2**18)  # 128 MiB.
SOURCE = np.broadcast_to(np.arange(2**18, dtype="float32"), SHAPE)
counts_the_peak = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="Linux counts the peak."
)


@counts_the_peak
@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="TensorFlow keeps the old until it has the new."
)
def test_the_new_values_never_stand_beside_the_old_ones():
    variable = keras.Variable("ones", shape=SHAPE)
    peak, _ = measure_peak(lambda: current().assign_array(variable, SOURCE))
    assert peak < 64
    assert keras.ops.convert_to_numpy(variable)[-1, -1] == 2**18 - 1


@counts_the_peak
def test_a_variable_that_was_unset_takes_memory_once():
    def make():
        variable = keras.Variable(current().unset_initializer(), shape=SHAPE)
        current().assign_array(variable, SOURCE)
        return variable

    peak, variable = measure_peak(make)
    assert peak < 128 + 64
    assert keras.ops.convert_to_numpy(variable)[-1, -1] == 2**18 - 1
