import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.training.label_check import mark_wrong_labels

OUTPUTS = np.zeros((2, 3), "float32")


def mark(spec, y, y_pred=OUTPUTS):
    loss = mark_wrong_labels(ops.convert_to_tensor(1.0), spec, y, ops.convert_to_tensor(y_pred))
    return float(ops.convert_to_numpy(loss))


@pytest.mark.parametrize(
    "spec",
    ["sparse_categorical_crossentropy", keras.losses.SparseCategoricalCrossentropy()],
)
@pytest.mark.parametrize(("label", "expected"), [(0, 1.0), (2, 1.0), (3, np.nan), (-1, np.nan)])
def test_a_label_that_is_no_class_makes_the_loss_nan(spec, label, expected):
    np.testing.assert_equal(mark(spec, np.array([1, label])), expected)
    np.testing.assert_equal(mark(spec, np.array([[1.0], [label]])), expected)


def test_a_class_that_is_ignored_is_none_that_is_wrong():
    assert mark(keras.losses.SparseCategoricalCrossentropy(ignore_class=-1), np.array([1, -1])) == 1


def test_other_losses_have_no_labels():
    assert mark("mse", np.array([7, 7])) == 1.0
    assert mark(None, None) == 1.0
