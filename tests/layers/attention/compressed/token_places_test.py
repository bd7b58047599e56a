import keras
import numpy as np

from keras_deepseek.layers.attention.compressed.token_places import (
    count_tokens,
    number_tokens,
    put_places,
    take_places,
    take_tokens,
)

MASK = np.array([[0, 1, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool)


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def test_real_tokens_come_first_in_their_order():
    numbers = number_tokens(MASK)
    assert to_numpy(numbers).tolist() == [[3, 0, 1, 4, 2], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    tokens = np.arange(15, dtype="float32").reshape(3, 5, 1)
    moved = take_tokens(tokens, keras.ops.argsort(numbers, axis=1))
    assert to_numpy(moved)[0, :, 0].tolist() == [1, 2, 4, 0, 3]
    np.testing.assert_array_equal(to_numpy(take_tokens(moved, numbers)), tokens)


def test_tokens_before_a_slot_are_counted_without_padding():
    for index in (3, keras.ops.convert_to_tensor(3, "int32")):
        assert to_numpy(count_tokens(MASK, index)).tolist() == [2, 3, 0]


def test_places_are_taken_and_filled_for_each_sequence_apart():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype("float32")
    places = np.array([[4, 0], [1, 1]], "int32")
    taken = to_numpy(take_places(x, places))
    for row in range(2):
        np.testing.assert_array_equal(taken[row], x[row][:, places[row]])
    shared = to_numpy(take_places(x, np.array([[2]], "int32")))
    np.testing.assert_array_equal(shared, x[:, :, 2:3])
    updates = np.ones((2, 3, 1, 4), "float32")
    filled = to_numpy(put_places(x, np.array([[3], [0]], "int32"), updates))
    expected = x.copy()
    expected[0, :, 3] = expected[1, :, 0] = 1
    np.testing.assert_array_equal(filled, expected)
