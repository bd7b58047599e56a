import keras
import numpy as np

from keras_deepseek.layers.attention.sparse.native_sparse_branches import put_places, take_places


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def test_places_are_taken_and_filled_for_each_sequence_apart():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype("float32")
    indices = np.array([[4, 0], [1, 1]], "int32")
    entries = to_numpy(take_places(x, indices))
    for row in range(2):
        np.testing.assert_array_equal(entries[row], x[row][:, indices[row]])
    shared = to_numpy(take_places(x, np.array([[2]], "int32")))
    np.testing.assert_array_equal(shared, x[:, :, 2:3])
    updates = np.ones((2, 3, 1, 4), "float32")
    filled = to_numpy(put_places(x, np.array([[3], [0]], "int32"), updates))
    expected = x.copy()
    expected[0, :, 3] = expected[1, :, 0] = 1
    np.testing.assert_array_equal(filled, expected)
