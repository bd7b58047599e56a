import keras
from keras import ops

from keras_deepseek.backend.keras_private.integer_products import integer_products


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
