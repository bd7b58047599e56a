"""Verification: which differences are found, and that nothing is left changed."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_deepseek.errors import ExportError
from keras_deepseek.graph.size_expressions import FreeAxis
from keras_deepseek.graph.verify import Verifier, resized_batches


def pair(change, **kwargs):
    """Returns two models that share their weights; the second changes its output."""
    inputs = keras.Input((4,), **kwargs)
    x = layers.Dense(3)(layers.BatchNormalization()(inputs))
    return keras.Model(inputs, x), keras.Model(inputs, change(x))


def inputs(rows=4):
    return ops.convert_to_tensor(np.random.default_rng(0).normal(size=(rows, 4)), "float32")


def compare(model, other, x=None, training=False):
    x = inputs() if x is None else x
    verifier = Verifier(model, resized_batches(x, ROWS, training=training), training=training)
    return verifier.compare(lambda batch: other(batch, training=training))


ROWS = [FreeAxis(((0, 0),))]


def test_equal_models_pass_and_keep_their_statistics():
    model, other = pair(lambda x: x)
    old_values = [ops.convert_to_numpy(variable) for variable in model.variables]
    assert compare(model, other, inputs(), training=True) == 0.0
    for old_value, variable in zip(old_values, model.variables, strict=True):
        np.testing.assert_array_equal(old_value, ops.convert_to_numpy(variable))


def test_a_difference_of_the_outputs_is_found():
    model, other = pair(lambda x: x * 1.001)
    with pytest.raises(ExportError, match="output 0"):
        compare(model, other, inputs(), training=False)


def test_a_difference_of_the_gradients_alone_is_found():
    model, other = pair(ops.stop_gradient)
    with pytest.raises(ExportError, match="gradient of"):
        compare(model, other, inputs(), training=True)


class Dropping(layers.Layer):
    def __init__(self):
        super().__init__()
        self.generator = keras.random.SeedGenerator()

    def call(self, inputs, training=False):
        return keras.random.dropout(inputs, 0.5, seed=self.generator) if training else inputs


class WithDropoutLayer(Dropping):
    def __init__(self):
        super().__init__()
        self.dropout = layers.Dropout(0.5)

    def call(self, inputs, training=False):
        return self.dropout(inputs, training=training)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.LSTM(3, dropout=0.5),
        lambda: layers.GRU(3, recurrent_dropout=0.5),
        lambda: layers.SpatialDropout1D(0.5),
        Dropping,
        WithDropoutLayer,
    ],
)
def test_random_layers_are_compared_without_their_dropout(layer):
    tensors = keras.Input((4, 3))
    model = keras.Model(tensors, layer()(tensors))
    x = ops.convert_to_tensor(np.random.default_rng(0).normal(size=(4, 4, 3)), "float32")
    assert compare(model, model, x, training=True) == 0.0


@pytest.mark.torch_alone
def test_gradients_are_compared_in_a_block_without_gradients():
    torch = pytest.importorskip("torch")
    model, other = pair(ops.stop_gradient)
    with torch.no_grad(), pytest.raises(ExportError, match="gradient of"):
        compare(model, other, inputs(), training=True)


def test_a_difference_at_another_batch_size_is_found():
    class OfFour(layers.Layer):
        def call(self, x):
            return x if x.shape[0] in (None, 4) else x * 2.0

    model, other = pair(OfFour())
    with pytest.raises(ExportError, match="batch 1"):
        compare(model, other, inputs(), training=False)


def test_a_fixed_batch_size_is_kept():
    tensors = keras.Input(batch_shape=(4, 4))
    model = keras.Model(tensors, ops.reshape(tensors, (2, 2, 4)))
    assert compare(model, model, inputs(), training=False) == 0.0


@pytest.mark.parametrize(("factor", "is_right"), [(1.0, True), (1.2, False)])
def test_half_precision_is_compared_with_float32(factor, is_right):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model, other = pair(lambda x: x * factor)
    if is_right:
        compare(model, other)
    else:
        with pytest.raises(ExportError, match="off from float32"):
            compare(model, other)
