import keras
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models.checkpoints.checkpoint_entry import path_entries


def paths(model):
    return [tensor for entry in path_entries(model) for tensor in entry.tensors]


def make_model():
    """Returns a model none of whose layers was given a name, one of them in a model of its own."""
    body = keras.Sequential(
        [
            keras.Input((6, 4)),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(4, use_bias=False),
        ]
    )
    inputs = keras.Input((6, 4))
    hidden = keras.layers.Dropout(0.1)(body(inputs))
    return keras.Model(inputs, keras.layers.GRU(2, use_bias=False)(hidden))


def test_all_weights_are_named_and_seeds_are_not():
    model = make_model()
    norm = [
        f"sequential/batch_normalization/{name}"
        for name in ("gamma", "beta", "moving_mean", "moving_variance")
    ]
    gru = ["gru/gru_cell/kernel", "gru/gru_cell/recurrent_kernel"]
    dense = ["sequential/dense/kernel", "sequential/dense/bias", "sequential/dense_1/kernel"]
    assert sorted(paths(model)) == sorted([*norm, *gru, *dense])
    mapped_ids = {id(variable) for entry in path_entries(model) for variable in entry.variables}
    assert mapped_ids == {id(weight) for weight in model.weights}


def test_names_that_keras_gave_do_not_depend_on_what_was_made_before():
    first, second = make_model(), make_model()
    assert first.layers[1].name != second.layers[1].name
    assert paths(first) == paths(second)
    shapes = [
        [tuple(v.shape) for e in path_entries(m) for v in e.variables] for m in (first, second)
    ]
    assert shapes[0] == shapes[1]


def test_names_that_were_given_stay():
    layers = [keras.layers.Dense(2, name="to_hidden"), keras.layers.Dense(2, name="block_3")]
    model = keras.Sequential([keras.Input((2,)), *layers])
    assert paths(model)[::2] == ["to_hidden/kernel", "block_3/kernel"]


def test_weights_without_a_name_are_counted():
    class Scales(keras.Layer):
        def build(self, shape):
            self.first = self.add_weight(shape=(1,))
            self.second = self.add_weight(shape=(2,))

        def call(self, x):
            return x * self.first

    for _ in range(2):
        model = keras.Sequential([keras.Input((2,)), Scales(name="scales")])
        assert paths(model) == ["scales/variable", "scales/variable_1"]


def test_a_layer_that_is_used_twice_is_there_once():
    dense, inputs = keras.layers.Dense(2, use_bias=False, name="shared"), keras.Input((2,))
    model = keras.Model(inputs, dense(dense(inputs)))
    model.also = dense
    assert paths(model) == ["shared/kernel"]


def test_two_weights_of_one_path_are_named():
    class Twins(keras.Layer):
        def build(self, shape):
            for attribute in ("first", "second"):
                layer = keras.layers.Dense(1, use_bias=False, name="same")
                layer.build(shape)
                setattr(self, attribute, layer)

        def call(self, x):
            return self.first(x) + self.second(x)

    model = keras.Sequential([keras.Input((2,)), Twins(name="twins")])
    with pytest.raises(InvalidInputError, match=r"two weights with the path 'twins/same/kernel'"):
        path_entries(model)


def test_a_model_that_is_not_built_is_refused():
    with pytest.raises(InvalidInputError, match="has no weights"):
        path_entries(keras.Sequential([keras.layers.Dense(1)]))


def test_a_lora_is_in_no_entry_of_its_own():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, use_bias=False, name="up")])
    model.layers[0].enable_lora(1)
    assert paths(model) == ["up/kernel"]
