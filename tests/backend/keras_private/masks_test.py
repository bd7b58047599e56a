"""Canaries: they fail when a Keras release moves a private name."""

import keras
import numpy as np
from keras import ops

from keras_deepseek.backend.keras_private.loss_and_metrics import (
    update_metrics,
)
from keras_deepseek.backend.keras_private.masks import (
    map_with_masks,
    output_masks,
    set_mask,
    split_floats,
)


def test_a_mask_that_a_layer_sets_is_not_replaced():
    class Shortened(keras.Layer):
        def __init__(self):
            super().__init__()
            self.supports_masking = True

        def call(self, inputs, mask=None):
            return set_mask(inputs[:, -1:] * 1, None if mask is None else mask[:, -1:])

    inputs = keras.layers.Masking()(np.array([[[0.0], [1.0]]], "float32"))
    mask = keras.ops.convert_to_numpy(Shortened()(inputs)._keras_mask)
    np.testing.assert_array_equal(mask, [[True]])


def build(layer_class=keras.Sequential, metrics=("mae",)):
    model = layer_class([keras.Input((4,)), keras.layers.Dense(1, kernel_regularizer="l2")])
    model.compile("sgd", "mse", metrics=list(metrics))
    model.optimizer.build(model.trainable_variables)
    return model


def test_metrics_see_the_mask_of_an_output():
    tokens = np.array([[1, 2, 0]])
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Embedding(4, 2, mask_zero=True), keras.layers.Dense(1)]
    )
    model.compile("sgd", "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    y_pred = model(tokens)
    (mask,) = output_masks(y_pred)
    np.testing.assert_array_equal(ops.convert_to_numpy(mask), tokens != 0)
    update_metrics(model, tokens, np.zeros((1, 3, 1)), y_pred, None)
    expected = np.abs(ops.convert_to_numpy(y_pred)[0, :2]).mean()
    np.testing.assert_allclose(float(model.get_metrics_result()["mae"]), expected, rtol=1e-5)


def test_an_output_without_a_mask_has_none():
    assert output_masks({"a": ops.ones((2,)), "b": [ops.ones((2,))]}) == [None, None]


def test_floats_are_split_from_other_arguments_and_keep_their_masks():
    tokens = np.array([[1, 2, 0]])
    embedded = keras.layers.Embedding(4, 2, mask_zero=True)(tokens)
    floats, put = split_floats(((embedded, ops.convert_to_tensor(tokens)), {"training": True}))
    assert len(floats) == 1
    (other, ids), named = put([embedded * 2.0])
    assert named == {"training": True}
    np.testing.assert_array_equal(ops.convert_to_numpy(ids), tokens)
    np.testing.assert_allclose(ops.convert_to_numpy(other), 2 * ops.convert_to_numpy(embedded))
    np.testing.assert_array_equal(ops.convert_to_numpy(output_masks(other)[0]), tokens != 0)


def test_structures_of_tensors_have_structures_of_masks():
    tokens = np.array([[1, 2, 0]])
    masked = keras.layers.Embedding(3, 2, mask_zero=True)(tokens)
    copies = map_with_masks(
        lambda leaf: ops.copy(leaf) if keras.ops.is_tensor(leaf) else leaf, {"x": masked, "y": None}
    )
    assert copies["y"] is None
    assert copies["x"] is not masked
    (mask,) = output_masks(copies["x"])
    np.testing.assert_array_equal(ops.convert_to_numpy(mask), tokens != 0)
