import numpy as np
import pytest

from keras_deepseek.models.checkpoints.scaled_tensor import Float4Pairs
from tests.oracles.scaled_weights import decode_float4


@pytest.fixture
def codes():
    return np.random.default_rng(0).integers(0, 256, (5, 4)).astype("uint8")


def test_every_byte_is_two_numbers_the_low_bits_first():
    codes = np.arange(256, dtype="uint8").reshape(4, 64)
    numbers = Float4Pairs(codes)[:, :]
    expected = decode_float4(codes)
    assert numbers.dtype == "float32"
    assert np.array_equal(numbers, expected)
    assert np.array_equal(np.signbit(numbers), np.signbit(expected))
    assert sorted(set(np.abs(expected).ravel())) == [0, 0.5, 1, 1.5, 2, 3, 4, 6]


@pytest.mark.parametrize(
    "index",
    [
        np.s_[:, :],
        np.s_[2, :],
        np.s_[-1, 3],
        np.s_[1:4, 2:7],
        np.s_[1:4, 3:4],
        np.s_[::-1, ::-1],
        np.s_[:, ::3],
        np.s_[:, 8:],
        np.s_[2, 5:5],
        np.s_[:, -1],
    ],
)
def test_an_index_reads_what_the_whole_has_there(codes, index):
    numbers = Float4Pairs(codes.view("int8"))[index]
    assert np.array_equal(numbers, decode_float4(codes)[index])
    assert numbers.shape == decode_float4(codes)[index].shape
