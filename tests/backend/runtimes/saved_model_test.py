import importlib.util

import numpy as np
import pytest

from keras_deepseek.backend.runtimes.saved_model import load_saved_model
from keras_deepseek.errors import InvalidInputError, MissingExtraError

WITHOUT = importlib.util.find_spec("tensorflow") is None


@pytest.mark.skipif(not WITHOUT, reason="TensorFlow is installed")
def test_without_tensorflow_the_extra_is_named(tmp_path):
    with pytest.raises(MissingExtraError, match=r"keras_deepseek\[tensorflow\]"):
        load_saved_model(tmp_path)


@pytest.mark.skipif(WITHOUT, reason="TensorFlow is not installed")
def test_a_folder_without_a_saved_model_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="No SavedModel"):
        load_saved_model(tmp_path)


@pytest.mark.skipif(WITHOUT, reason="TensorFlow is not installed")
def test_a_signature_runs_by_name(tmp_path):
    import tensorflow as tf

    class Doubler(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 2), tf.float32, name="x")])
        def serve(self, x):
            return {"y": 2 * x}

    module = Doubler()
    tf.saved_model.save(module, str(tmp_path), signatures=module.serve)
    del module
    outputs = load_saved_model(tmp_path)({"x": np.ones((3, 2), "float32")})
    np.testing.assert_array_equal(outputs["y"], np.full((3, 2), 2.0))


@pytest.mark.skipif(WITHOUT, reason="TensorFlow is not installed")
def test_a_saved_model_without_signature_is_refused(tmp_path):
    import tensorflow as tf

    tf.saved_model.save(tf.Module(), str(tmp_path))
    with pytest.raises(InvalidInputError, match="serving_default"):
        load_saved_model(tmp_path)
