import keras
import pytest

from keras_deepseek import backend
from keras_deepseek.artifacts.errors import NotSupportedError
from keras_deepseek.backend.named_model import NamedModel

IN_TENSORFLOW = keras.backend.backend() == "tensorflow"


@pytest.mark.skipif(not IN_TENSORFLOW, reason="only TensorFlow writes a SavedModel")
def test_a_saved_model_has_the_models_names(model, tmp_path):
    import tensorflow as tf

    named = NamedModel(model)
    backend.current().write_saved_model(named, str(tmp_path))
    signature = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    specs = signature.structured_input_signature[1]
    for spec in named.signature.inputs:
        assert tuple(specs[spec.name].shape) == spec.shape
        assert specs[spec.name].dtype.name == spec.dtype
    assert set(signature.structured_outputs) == {spec.name for spec in named.signature.outputs}


@pytest.mark.skipif(not IN_TENSORFLOW, reason="only TensorFlow writes ONNX")
def test_an_onnx_file_has_as_many_inputs_and_outputs_as_the_model(model, tmp_path):
    import onnx

    named = NamedModel(model)
    backend.current().write_onnx(named, str(tmp_path / "model.onnx"), 18)
    proto = onnx.load(tmp_path / "model.onnx")
    assert len(proto.graph.input) == len(named.signature.inputs)
    assert len(proto.graph.output) == len(named.signature.outputs)
    assert [opset.version for opset in proto.opset_import if not opset.domain] == [18]


@pytest.mark.skipif(IN_TENSORFLOW, reason="TensorFlow writes both")
def test_a_backend_that_can_not_write_says_so(convolutional, tmp_path):
    named = NamedModel(convolutional)
    with pytest.raises(NotSupportedError, match="SavedModel is not written from"):
        backend.current().write_saved_model(named, str(tmp_path))
    with pytest.raises(NotSupportedError, match="ONNX is not written from"):
        backend.current().write_onnx(named, str(tmp_path / "model.onnx"), 18)
