import numpy as np
import pytest

from keras_deepseek.backend import array_pieces
from keras_deepseek.backend.array_pieces import cut_pieces


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
