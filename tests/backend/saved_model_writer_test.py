import sys

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.errors import MissingExtraError
from keras_deepseek.backend import current
from keras_deepseek.backend.named_model import NamedModel
from keras_deepseek.backend.saved_model import load_saved_model


class Halving(keras.layers.Layer):
    """Halves its input until all of it is small: nobody knows how often, nor its gradient."""

    def call(self, inputs):
        def is_large(values):
            return keras.ops.max(keras.ops.abs(values)) > 1.0

        return keras.ops.while_loop(is_large, lambda values: (values * 0.5,), (inputs,))[0]


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="PyTorch writes none")
def test_a_loop_without_a_gradient_is_written(tmp_path):
    pytest.importorskip("tensorflow")
    inputs = keras.Input((4,), name="x")
    named = NamedModel(keras.Model(inputs, Halving()(inputs)))
    current().write_saved_model(named, str(tmp_path))
    for scale in (0.5, 3.0, 100.0):
        x = scale * np.ones((2, 4), "float32")
        expected = keras.ops.convert_to_numpy(named({"x": x})["output_0"])
        np.testing.assert_array_equal(load_saved_model(tmp_path)({"x": x})["output_0"], expected)


def test_without_tensorflow_the_extra_is_named(tmp_path, monkeypatch):
    if keras.backend.backend() == "torch":
        pytest.skip("PyTorch writes none")
    model = NamedModel(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(MissingExtraError, match=r"keras_deepseek\[tensorflow\]"):
        current().write_saved_model(model, str(tmp_path))
