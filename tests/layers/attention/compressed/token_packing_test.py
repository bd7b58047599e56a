import keras
import numpy as np

from keras_deepseek.layers.attention.compressed.token_packing import (
    count_tokens,
    join_recent,
    pack_tokens,
    take_rows,
)

MASK = np.array([[True, True, True, True], [False, True, False, True], [False] * 4])


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def draw(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("float32")


def test_real_tokens_come_first_and_go_back():
    inputs = draw(3, 4, 2)
    tokens = pack_tokens(inputs, MASK)
    for row in range(3):
        real = inputs[row, MASK[row]]
        np.testing.assert_array_equal(to_numpy(tokens.inputs)[row, : len(real)], real)
    assert to_numpy(tokens.num_real).tolist() == [[4], [2], [0]]
    assert to_numpy(tokens.positions).tolist() == [[0, 1, 2, 3]]
    unpacked = to_numpy(tokens.unpack(tokens.inputs))
    np.testing.assert_array_equal(unpacked[MASK], inputs[MASK])


def test_tokens_without_padding_stay_as_they_are():
    inputs = draw(3, 4, 2)
    tokens = pack_tokens(inputs)
    assert tokens.inputs is inputs
    assert tokens.unpack(inputs) is inputs
    assert to_numpy(tokens.num_real).tolist() == [[4]]
    assert to_numpy(tokens.ranks).tolist() == [[0, 1, 2, 3]]


def test_given_positions_move_with_their_tokens_and_others_count_on():
    num_before = keras.ops.convert_to_tensor([[5], [2], [0]], "int32")
    tokens = pack_tokens(draw(3, 4, 2), MASK, np.array([[7, 8, 9, 10]]), num_before)
    assert to_numpy(tokens.positions)[1, :2].tolist() == [8, 10]
    assert to_numpy(tokens.ranks)[1].tolist() == [2, 3, 4, 5]
    tokens = pack_tokens(draw(3, 4, 2), MASK, None, num_before)
    assert to_numpy(tokens.positions)[:, 0].tolist() == [5, 2, 0]


def test_rows_are_taken_from_their_own_sequence():
    x, indices = draw(3, 4, 2), np.array([[[0, 3]], [[1, 1]], [[2, 0]]], "int32")
    rows = to_numpy(take_rows(x, keras.ops.convert_to_tensor(indices)))
    np.testing.assert_array_equal(rows, np.stack([x[b, indices[b]] for b in range(3)]))
    same = to_numpy(take_rows(x, keras.ops.convert_to_tensor(indices[:1])))
    np.testing.assert_array_equal(same, x[:, indices[0]])


def test_the_last_real_tokens_are_kept():
    recent, new = draw(3, 2, 5), draw(3, 4, 5)
    tokens = pack_tokens(new, MASK)
    joined, last_tokens = join_recent(recent, tokens.inputs, tokens)
    assert tuple(joined.shape) == (3, 6, 5)
    last_tokens = to_numpy(last_tokens)
    np.testing.assert_array_equal(last_tokens[0], new[0, 2:])
    np.testing.assert_array_equal(last_tokens[1], new[1, [1, 3]])
    np.testing.assert_array_equal(last_tokens[2], recent[2])


def test_tokens_before_a_slot_are_counted_without_padding():
    for index in (3, keras.ops.convert_to_tensor(3, "int32")):
        assert to_numpy(count_tokens(MASK, index)).tolist() == [3, 1, 0]
