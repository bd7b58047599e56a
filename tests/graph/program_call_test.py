import keras
import numpy as np
import pytest
from keras import layers

from keras_deepseek.graph.optimized_model import ProgramCall


@pytest.fixture
def model():
    inputs = keras.Input((None, 8))
    x = inputs + layers.MultiHeadAttention(2, 4)(inputs, inputs)
    return keras.Model(inputs, layers.Dense(3)(x[:, 0]))


def test_the_model_has_its_own_call_again(model):
    x = np.ones((2, 5, 8), "float32")
    expected = keras.ops.convert_to_numpy(model(x))
    call = ProgramCall(model)
    for _ in range(2):
        with call.in_use():
            assert vars(model)["call"] is call
            outputs = model(x)
        assert "call" not in vars(model)
        np.testing.assert_allclose(keras.ops.convert_to_numpy(outputs), expected, atol=1e-6)


def test_symbols_get_the_models_own_call(model):
    with ProgramCall(model).in_use():
        assert model.compute_output_spec(keras.KerasTensor((None, 5, 8))).shape == (None, 3)
        assert keras.Model(model.inputs, model(model.input)).count_params() > 0
        assert model(np.ones((2, 5, 8), "float32"), mask=None).shape == (2, 3)


class Whole(keras.Model):
    """A model whose `call` can't be traced."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(1)
        self.count = self.add_weight(initializer="zeros", trainable=False)

    def call(self, inputs):
        self.count.assign(self.count + 1)
        return self.dense(inputs)


def test_a_model_that_can_t_be_traced_runs_its_own_call():
    model = Whole()
    x = np.ones((2, 4), "float32")
    expected = keras.ops.convert_to_numpy(model(x))
    with ProgramCall(model).in_use():
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(model(x)), expected)
    assert float(model.count) == 2


@pytest.mark.tensorflow_alone
def test_open_sizes_that_differ_are_two_axes():
    tf = pytest.importorskip("tensorflow")
    image = keras.Input((None, None, 2))
    model = keras.Model(image, keras.ops.transpose(layers.Conv2D(3, 2)(image), (0, 2, 1, 3))[:, 0])
    x = np.random.default_rng(0).normal(size=(2, 6, 9, 2)).astype("float32")
    call = ProgramCall(model)

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 2))])
    def run(inputs):
        with call.in_use():
            return model(inputs)

    np.testing.assert_allclose(run(x), model(x), atol=1e-5)


@pytest.mark.tensorflow_alone
def test_rows_of_an_unknown_number_are_cut(model):
    tf = pytest.importorskip("tensorflow")
    x = np.random.default_rng(0).normal(size=(2, 6, 8)).astype("float32")
    call = ProgramCall(model)

    @tf.function(input_signature=[tf.TensorSpec((None, None, 8))])
    def run(inputs):
        with call.in_use():
            return model(inputs)

    np.testing.assert_allclose(run(x), model(x), atol=1e-5)
    operations = [
        operation.type for operation in run.get_concrete_function().graph.get_operations()
    ]
    assert operations.index("StridedSlice") < operations.index("Softmax")


def test_a_dict_of_inputs_runs_a_program():
    inputs = {name: keras.Input((4,), name=name) for name in "ab"}
    model = keras.Model(inputs, layers.Dense(3)(inputs["a"] + inputs["b"]))
    batch = {name: keras.ops.ones((2, 4)) for name in "ab"}
    call = ProgramCall(model)
    with call.in_use():
        model(batch)
    assert call.has_program(batch)
