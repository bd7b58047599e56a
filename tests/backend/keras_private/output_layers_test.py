import keras
import pytest

from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.keras_private.output_layers import layers_by_output


def names_by_output(model):
    layers_of = layers_by_output(NamedModel(model))
    return {output: {layer.name for layer in layers} for output, layers in layers_of.items()}


def build(model_class=keras.Model):
    left_input, right_input = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    shared = keras.layers.Dense(3, name="shared")
    inner = keras.Sequential([keras.layers.Dense(2, name="within")], name="inner")
    outputs = {
        "plain": keras.layers.Dense(2, name="head")(shared(left_input)) * 2.0,
        "mixed": inner(
            shared(right_input) + keras.layers.Dense(3, name="half", dtype="float16")(right_input)
        ),
    }
    return model_class({"left": left_input, "right": right_input}, outputs)


def test_the_layers_on_the_way_to_an_output():
    layer_names = names_by_output(build())
    assert layer_names["plain"] == {"left", "shared", "head"}
    assert layer_names["mixed"] >= {"right", "shared", "half", "inner", "within"}
    assert not layer_names["mixed"] & {"left", "head"}


def test_a_sequential_model_depends_on_all_of_its_layers():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a")])
    model.add(keras.layers.Dense(2, name="b"))
    assert names_by_output(model)["b"] >= {"a", "b"}


def test_what_has_a_call_of_its_own_depends_on_everything():
    class Doubled(keras.Model):
        def call(self, inputs, training=None):
            return keras.tree.map_structure(lambda x: x * 2, super().call(inputs))

    assert type(build(Doubled)).__name__ == "Doubled"
    layer_names = names_by_output(build(Doubled))
    assert layer_names["plain"] == layer_names["mixed"] >= {"head", "half", "within"}


def test_a_subclass_depends_on_everything():
    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.first = keras.layers.Dense(2, name="first")
            self.second = keras.layers.Dense(2, name="second")

        def call(self, x):
            return self.first(x), self.second(x)

    model = Two()
    model(keras.ops.ones((2, 3)))
    for layer_names in names_by_output(model).values():
        assert layer_names >= {"first", "second"}


@pytest.mark.parametrize("num_calls", [1, 2])
def test_a_layer_counts_where_it_is_called(num_calls):
    x = keras.Input((4,), name="x")
    twice = keras.layers.Dense(4, name="twice")
    y = twice(x)
    z = keras.layers.ReLU(name="between")(y)
    z = twice(z) if num_calls > 1 else z
    layer_names = names_by_output(keras.Model(x, {"y": y, "z": z}))
    assert "between" not in layer_names["y"]
    assert layer_names["z"] == {"x", "twice", "between"}
