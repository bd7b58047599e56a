import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.keras_private.functional_graphs import (
    CloneCheckedModel,
    integer_products,
    layers_by_output,
)
from keras_deepseek.errors import NotSupportedError


class Unsaved(keras.layers.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)


def make_model(*, is_shared=False, last=()):
    inputs = keras.Input((2,))
    dense = keras.layers.Dense(2, name="dense")
    inner = keras.Model(inputs, dense(inputs), name="inner")
    outputs = inner(inputs)
    for layer in [dense] * is_shared + list(last):
        outputs = layer(outputs)
    return CloneCheckedModel(inputs, outputs)


def predict(model):
    return keras.ops.convert_to_numpy(model(np.array([[1.0, 2.0]], "float32")))


def test_a_graph_whose_layers_share_nothing_is_cloned():
    model = make_model()
    clone = keras.models.clone_model(model)
    assert clone.weights[0] is not model.weights[0]
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(predict(clone), predict(model))


def test_a_graph_whose_layers_share_weights_is_refused():
    """If a Keras release moves `_run_through_graph`, nothing is raised here, and two are made."""
    model = make_model(is_shared=True)
    with pytest.raises(NotSupportedError, match=r"'(inner|dense)' shares weights .*from_config"):
        keras.models.clone_model(model)
    with pytest.raises(NotSupportedError, match="shares weights"):
        keras.models.clone_model(model, call_function=lambda layer, *args: layer(*args))


def test_layers_that_a_clone_keeps_may_share_weights():
    model = make_model(is_shared=True)
    clone = keras.models.clone_model(model, clone_function=lambda layer: layer)
    assert [id(weight) for weight in clone.weights] == [id(weight) for weight in model.weights]
    np.testing.assert_array_equal(predict(clone), predict(model))


def test_a_layer_without_a_config_is_told_with_what_to_do():
    with pytest.raises(NotSupportedError, match=r"not made by a config\. Make a copy by"):
        keras.models.clone_model(make_model(last=[Unsaved(keras.ops.tanh)]))


def inputs_of(dtype):
    return keras.Input((3, 3), dtype=dtype), keras.Input((3, 3), dtype=dtype)


def test_products_of_integers_are_found_inside_of_models_too():
    x, y = inputs_of("int32")
    inner = keras.Model([x, y], ops.matmul(x, y))
    a, b = inputs_of("int32")
    model = keras.Model([a, b], [inner([a, b]), ops.einsum("bij,bij->b", a, b), a * b])
    assert [name.split()[0] for name in integer_products(model)] == ["Matmul", "Einsum"]


def test_those_of_floats_and_of_models_that_are_no_graph_are_not():
    x, y = inputs_of("float32")
    assert integer_products(keras.Model([x, y], ops.matmul(x, y))) == []
    assert integer_products(keras.layers.Dense(2)) == []


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


def test_outputs_of_a_model_with_its_own_call_depend_on_all_layers():
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
