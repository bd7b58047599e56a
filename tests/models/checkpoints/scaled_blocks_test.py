import ml_dtypes
import numpy as np
import pytest

from keras_deepseek.models.checkpoints.scaled_tensor import Float4Pairs, ScaledBlocks, count_blocks
from tests.oracles import scaled_weights


@pytest.fixture
def parts():
    random = np.random.default_rng(0)
    values = random.normal(size=(7, 10)).astype(ml_dtypes.float8_e4m3fn)
    return values, random.uniform(1, 2, size=(3, 3)).astype("float32")


@pytest.fixture
def whole(parts):
    values, scales = parts
    grown = np.repeat(np.repeat(scales, 3, axis=0), 4, axis=1)[:7, :10]
    return values.astype("float32") * grown


@pytest.mark.parametrize(
    "index",
    [
        np.s_[:],
        np.s_[2],
        np.s_[-1],
        np.s_[2:6],
        np.s_[::-1],
        np.s_[:, 3],
        np.s_[4, 5],
        np.s_[1:5, 2:9],
        np.s_[:, ::3],
        np.s_[3, 1:],
        np.s_[()],
    ],
)
def test_an_index_reads_what_the_whole_has_there(parts, whole, index):
    blocks = ScaledBlocks(*parts, (3, 4))
    assert np.array_equal(blocks[index], whole[index])
    assert np.array_equal(
        blocks.T[index[::-1]] if type(index) is tuple else blocks[index],
        whole.T[index[::-1]] if type(index) is tuple else whole[index],
    )


def test_it_is_an_array_where_one_is_wanted(parts, whole):
    blocks = ScaledBlocks(*parts, (3, 4))
    assert np.array_equal(np.asarray(blocks), whole)
    assert np.array_equal(np.stack([blocks.T]), [whole.T])
    assert np.array_equal(blocks.reshape(10, 7), whole.reshape(10, 7))
    assert np.asarray(blocks, "float16").dtype == "float16"
    assert (len(blocks), blocks.dtype) == (7, "float32")


def test_what_is_scaled_stays_as_it_was(parts):
    values, scales = parts
    old_values = values.copy()
    ScaledBlocks(values, scales, (3, 4))[:]
    assert np.array_equal(values.view("u1"), old_values.view("u1"))


def test_every_number_of_float8_and_of_its_powers_of_two_is_read():
    codes = np.array([code for code in range(256) if code & 127 != 127], "uint8").reshape(2, 127)
    powers = np.array([[100, 127, 140]], "uint8")
    blocks = ScaledBlocks(
        codes.view(ml_dtypes.float8_e4m3fn), powers.view(ml_dtypes.float8_e8m0fnu), (2, 50)
    )
    expected = scaled_weights.multiply(
        scaled_weights.decode_float8(codes), scaled_weights.decode_scales(powers), (2, 50)
    )
    assert np.array_equal(blocks[:], expected)


@pytest.mark.parametrize("index", [np.s_[:], np.s_[2], np.s_[1:3, 5:40], np.s_[:, 33]])
def test_float4_has_a_scale_for_each_32_of_a_row(index):
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (3, 32)).astype("uint8")
    powers = random.integers(120, 130, (3, 2)).astype("uint8")
    blocks = ScaledBlocks(Float4Pairs(codes), powers.view(ml_dtypes.float8_e8m0fnu), (1, 32))
    expected = scaled_weights.multiply(
        scaled_weights.decode_float4(codes), scaled_weights.decode_scales(powers), (1, 32)
    )
    assert np.array_equal(blocks[index], expected[index])
    turned = index[::-1] if type(index) is tuple else index
    assert np.array_equal(blocks.T[turned], expected.T[turned])


def test_blocks_at_the_edges_count():
    assert count_blocks((7, 8), (3, 4)) == (3, 2)
    assert count_blocks((1, 0), (128, 128)) == (1, 0)
