import keras
import numpy as np
import pytest

from keras_deepseek.backend.keras_private.cloned_graph import CloneCheckedModel
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
