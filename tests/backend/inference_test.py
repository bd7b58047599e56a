import keras
import numpy as np

from keras_deepseek import backend
from keras_deepseek.backend.export.named_model import NamedModel


def draw(signature, batch_size, length):
    generator = np.random.default_rng(batch_size)
    shapes = {
        spec.name: [
            batch_size if axis == 0 else length if size is None else size
            for axis, size in enumerate(spec.shape)
        ]
        for spec in signature.inputs
    }
    return {
        spec.name: generator.integers(0, 5, shapes[spec.name]).astype(spec.dtype)
        for spec in signature.inputs
    }


def test_the_compiled_model_equals_predict_at_every_size(model):
    named = NamedModel(model)
    infer = backend.current().compile_inference(named)
    for batch_size, length in ((1, 3), (5, 7)):
        inputs = draw(named.signature, batch_size, length)
        predicted = named.name_outputs(model.predict(named.pack_inputs(inputs), verbose=0))
        for name, array in infer(inputs).items():
            assert isinstance(array, np.ndarray)
            np.testing.assert_allclose(array, predicted[name], atol=1e-6, rtol=1e-5)


def test_changed_weights_are_seen(convolutional):
    named = NamedModel(convolutional)
    infer = backend.current().compile_inference(named)
    inputs = draw(named.signature, 2, 1)
    before = infer(inputs)["output_0"]
    convolutional.set_weights([2 * weight for weight in convolutional.get_weights()])
    after = infer(inputs)["output_0"]
    assert np.abs(after - before).max() > 1e-4
    np.testing.assert_allclose(
        after, convolutional.predict(inputs["image"], verbose=0), atol=1e-6, rtol=1e-5
    )


def test_dropout_and_batch_statistics_are_those_of_inference():
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.BatchNormalization(), keras.layers.Dropout(0.9)]
    )
    infer = backend.current().compile_inference(NamedModel(model))
    weights = model.get_weights()
    outputs = infer({"input_0": np.full((8, 4), 3.0, "float32")})["output_0"]
    np.testing.assert_allclose(outputs, 3.0, rtol=1e-2)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_batch_is_computed_at_its_own_sizes():
    """Keras's `TimeDistributed` takes the batch for the length in a graph where both are free."""
    inputs = keras.Input((None, 3))
    layer = keras.layers.TimeDistributed(keras.layers.Dense(2))
    named = NamedModel(keras.Model(inputs, layer(inputs)))
    given = np.random.default_rng(0).normal(size=(2, 7, 3)).astype("float32")
    outputs = backend.current().plain_inference(named)({"input_0": given})["output_0"]
    kernel, bias = layer.get_weights()
    np.testing.assert_allclose(outputs, given @ kernel + bias, atol=1e-6, rtol=1e-5)
