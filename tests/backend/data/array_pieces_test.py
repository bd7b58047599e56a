import ml_dtypes
import numpy as np
import pytest

from keras_deepseek.backend.data import array_pieces
from keras_deepseek.backend.data.array_pieces import as_contiguous, copy_array, cut_pieces


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (7, 3), (5, 0), (2, 3, 4)])
def test_the_pieces_are_all_of_an_array_once(shape, monkeypatch):
    monkeypatch.setattr(array_pieces, "PIECE_BYTES", 24)
    counts = np.zeros(shape)
    for index in cut_pieces(shape, 4):
        assert counts[index].size <= max(24 // 4, np.prod(shape[1:]))
        counts[index] += 1
    assert np.all(counts == 1)


def test_a_small_array_is_one_piece():
    assert list(cut_pieces((7, 3), 4)) == [slice(0, 7)]


@pytest.mark.parametrize(
    ("shape", "order"),
    [
        ((), ()),
        ((5,), (0,)),
        ((0, 40), (1, 0)),
        ((300, 130), (0, 1)),
        ((300, 130), (1, 0)),
        ((131, 1, 263), (2, 1, 0)),
        ((3, 70, 50), (0, 2, 1)),
        ((70, 3, 50), (1, 2, 0)),
        ((2, 3, 40, 33), (3, 2, 1, 0)),
        ((40, 8), (1, 0)),
    ],
)
def test_a_copy_is_what_it_is_of_in_whatever_order_its_numbers_lie(shape, order):
    numbers = np.random.default_rng(0).random(shape, "float32")
    source = numbers.transpose(order)
    for dtype in ("float32", "float16", ml_dtypes.bfloat16):
        target = np.full(source.shape, -1, dtype)
        copy_array(target, source)
        np.testing.assert_array_equal(target, source.astype(dtype))


def test_a_copy_of_numbers_that_are_told_backwards_or_once_for_all():
    numbers = np.random.default_rng(0).random((90, 70), "float32")
    for source in (numbers.T[::-1, ::-1], np.broadcast_to(numbers[:, :1], (90, 70)).T):
        target = np.empty(source.shape, "float32")
        copy_array(target, source)
        np.testing.assert_array_equal(target, source)


def test_contiguous_arrays_are_not_copied():
    numbers = np.random.default_rng(0).random((40, 50), "float32")
    assert as_contiguous(numbers, np.dtype("float32")) is numbers
    turned = as_contiguous(numbers.T, np.dtype("float16"))
    assert turned.flags.c_contiguous
    np.testing.assert_array_equal(turned, numbers.T.astype("float16"))
