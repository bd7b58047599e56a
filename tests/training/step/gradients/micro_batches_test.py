import numpy as np
import pytest
from keras import ops

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.step.gradients.micro_batches import (
    MicroBatches,
    check_same_rows,
    pad_empty_batch,
)
from keras_deepseek.training.step.loss.batch_loss import count_rows

X = np.arange(10.0).reshape(5, 2)


def read(batch):
    return [None if part is None else ops.convert_to_numpy(part)[:, 0].tolist() for part in batch]


@pytest.mark.parametrize(
    ("number", "parts"),
    [
        (1, [[0, 2, 4, 6, 8]]),
        (2, [[0, 2, 4], [6, 8]]),
        (3, [[0, 4], [2, 6], [8]]),
        (9, [[0], [2], [4], [6], [8]]),
    ],
)
def test_each_row_is_in_one_micro_batch(number, parts):
    pieces = MicroBatches((X, X + 1, None), number)
    read_pieces = [read(pieces.take(index)) for index in range(pieces.number)]
    pieces.add_rest(lambda batch, sums: read_pieces.append(read(batch)), [])
    assert read_pieces == [[part, [value + 1 for value in part], None] for part in parts]


def test_rows_are_counted_and_compared():
    assert count_rows(({"a": None, "b": X}, None, None)) == 5
    with pytest.raises(InvalidInputError, match="a batch without inputs"):
        count_rows((None, X, None))
    check_same_rows((X, X, None), 5)
    with pytest.raises(InvalidInputError, match="5 inputs has 3 sample weights"):
        check_same_rows((X, X, X[:3]), 5)


def test_empty_batch_gets_a_row():
    assert read(pad_empty_batch((X[:0], X[:0] + 1, None))) == [[0.0], [0.0], None]
    assert read(pad_empty_batch((X, X, None)))[0] == [0, 2, 4, 6, 8]
