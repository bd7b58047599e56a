import numpy as np
import pytest

from keras_deepseek.models.checkpoints.checkpoint_entry import StackedArrays


@pytest.fixture
def stack():
    return StackedArrays([np.arange(6).reshape(2, 3), np.arange(6, 12).reshape(2, 3)])


@pytest.mark.parametrize(
    "index",
    [
        np.s_[0],
        np.s_[-1],
        np.s_[:],
        np.s_[1:],
        np.s_[:, 1],
        np.s_[1, :, 2:],
        np.s_[::-1, ::-1],
        np.s_[0:2, 0:1, 1:3],
    ],
)
def test_an_index_reads_what_the_stack_would_have_there(stack, index):
    whole = np.stack(stack.arrays)
    assert np.array_equal(stack[index], whole[index])


def test_only_what_is_asked_for_is_read(stack):
    class Unreadable(np.ndarray):
        def __getitem__(self, index):
            raise AssertionError("read")

    stack.arrays[0] = stack.arrays[0].view(Unreadable)
    assert np.array_equal(stack[1:2], np.arange(6, 12).reshape(1, 2, 3))
    with pytest.raises(AssertionError, match="read"):
        stack[:]


def test_it_is_an_array_where_one_is_wanted(stack):
    assert np.asarray(stack).tolist() == np.arange(12).reshape(2, 2, 3).tolist()
    assert np.asarray(stack, "float32").dtype == "float32"
    assert len(stack) == 2
    assert list(stack)[1].tolist() == stack.arrays[1].tolist()


def test_it_has_the_dtype_and_shape_of_the_whole(stack):
    assert (stack.shape, stack.dtype) == ((2, 2, 3), stack.arrays[0].dtype)
