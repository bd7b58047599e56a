import ml_dtypes
import numpy as np
import pytest

from keras_deepseek.models.checkpoints.scaled_blocks import ScaledBlocks, count_blocks


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
    before = values.copy()
    ScaledBlocks(values, scales, (3, 4))[:]
    assert np.array_equal(values.view("u1"), before.view("u1"))


def test_blocks_at_the_edges_count():
    assert count_blocks((7, 8), (3, 4)) == (3, 2)
    assert count_blocks((1, 0), (128, 128)) == (1, 0)
