import keras
import numpy as np

from keras_deepseek.testing.mask_layers import AttachMask, RecordMask

MASK = np.array([[True, False, True]])


def test_an_attached_mask_arrives_through_a_layer_of_keras():
    recorder = RecordMask()
    x = AttachMask(MASK)(keras.ops.ones((1, 3, 2)))
    recorder(keras.layers.Dense(4)(x))
    np.testing.assert_array_equal(recorder.mask, MASK)


def test_a_dropped_mask_is_recorded_as_none():
    recorder = RecordMask()
    x = AttachMask(MASK)(keras.ops.ones((1, 3, 2)))
    recorder(keras.layers.GlobalAveragePooling1D()(x))
    assert recorder.mask is None


def test_values_pass_unchanged():
    x = np.random.default_rng(0).normal(size=(1, 3, 2)).astype("float32")
    outputs = RecordMask()(AttachMask(MASK)(keras.ops.convert_to_tensor(x)))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(outputs), x)
