import keras
import numpy as np
import pytest

from keras_deepseek.callbacks import count_training_flops, estimate_training_flops
from keras_deepseek.errors import InvalidInputError


def test_a_stack_of_layers():
    layers = [keras.Input((4,)), keras.layers.Dense(5, "relu"), keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    assert count_training_flops(model) == 3 * 2 * (4 * 5 + 5 * 2)
    assert count_training_flops(model, np.ones((7, 4), "float32")) == 7 * 3 * 2 * (4 * 5 + 5 * 2)


def test_inputs_by_name():
    inputs = {"a": keras.Input((3,), name="a"), "b": keras.Input((3,), dtype="int32", name="b")}
    embedded = keras.layers.Flatten()(keras.layers.Embedding(9, 2)(inputs["b"]))
    joined = keras.layers.Concatenate()([inputs["a"], embedded])
    model = keras.Model(inputs, keras.layers.Dense(5)(joined))
    assert count_training_flops(model) == 3 * 2 * 9 * 5


def test_where_no_shape_is_known_a_batch_says_it():
    inputs = keras.Input((None, 4))
    model = keras.Model(inputs, keras.layers.Dense(5)(inputs))
    assert count_training_flops(model) is None
    assert count_training_flops(model, np.ones((2, 3, 4), "float32")) == 3 * 2 * 2 * 3 * 4 * 5


def test_counting_leaves_the_model_as_it_was():
    model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
    old_weights = [np.array(keras.ops.convert_to_numpy(value)) for value in model.get_weights()]
    count_training_flops(model, np.full((3, 4), 7.0, "float32"))
    for value, other in zip(model.get_weights(), old_weights, strict=True):
        np.testing.assert_array_equal(value, other)


def test_the_estimate_of_a_dense_layer_is_its_count():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, use_bias=False)])
    assert estimate_training_flops(model.count_params(), 1) == count_training_flops(model)
    with pytest.raises(InvalidInputError, match="`num_tokens` must be a finite number"):
        estimate_training_flops(1, -1)
