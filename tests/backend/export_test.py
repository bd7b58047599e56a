import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.export.saved_model_writer import ServingSignatures
from keras_deepseek.errors import NotSupportedError

BACKEND = keras.backend.backend()
WRITERS = {"tensorflow": "tf2onnx", "torch": "onnxscript"}
"""The package by which each backend writes ONNX."""
writes_onnx = pytest.mark.skipif(BACKEND not in WRITERS, reason="JAX writes none")


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch writes none")
def test_a_saved_model_has_the_models_names(model, tmp_path):
    tf = pytest.importorskip("tensorflow")
    named = NamedModel(model)
    backend.current().export.write_saved_model(named, str(tmp_path), ServingSignatures())
    signature = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    specs = signature.structured_input_signature[1]
    for spec in named.signature.inputs:
        assert tuple(specs[spec.name].shape) == spec.shape
        assert specs[spec.name].dtype.name == spec.dtype
    assert set(signature.structured_outputs) == {spec.name for spec in named.signature.outputs}


@writes_onnx
def test_an_onnx_file_has_as_many_inputs_and_outputs_as_the_model(model, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip(WRITERS[BACKEND])
    is_recurrent = any(isinstance(layer, keras.layers.RNN) for layer in model.layers)
    if is_recurrent and BACKEND == "torch":
        pytest.skip("Keras's loop over a free length can't be traced by torch.export")
    named = NamedModel(model)
    backend.current().export.write_onnx(named, str(tmp_path / "model.onnx"), 18)
    proto = onnx.load(tmp_path / "model.onnx")
    assert len(proto.graph.input) == len(named.signature.inputs)
    assert len(proto.graph.output) == len(named.signature.outputs)
    assert [opset.version for opset in proto.opset_import if not opset.domain] == [18]


@writes_onnx
def test_inputs_stand_in_the_models_order(tmp_path):
    """TensorFlow sorts the keys of a dict."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip(WRITERS[BACKEND])
    last, first = keras.Input((3,), name="z"), keras.Input((5,), name="a")
    named = NamedModel(keras.Model([last, first], keras.layers.Concatenate()([last, first])))
    backend.current().export.write_onnx(named, str(tmp_path / "model.onnx"), 18)
    inputs = onnx.load(tmp_path / "model.onnx").graph.input
    assert [value.type.tensor_type.shape.dim[1].dim_value for value in inputs] == [3, 5]


@pytest.mark.skipif(BACKEND != "torch", reason="the others write it")
def test_a_backend_that_can_not_write_says_so(convolutional, tmp_path):
    with pytest.raises(NotSupportedError, match="can't write a SavedModel itself"):
        backend.current().export.write_saved_model(
            NamedModel(convolutional), str(tmp_path), ServingSignatures()
        )


@pytest.mark.skipif(BACKEND != "jax", reason="the others write it")
def test_jax_can_not_write_onnx(convolutional, tmp_path):
    with pytest.raises(NotSupportedError, match="JAX can't write ONNX itself"):
        backend.current().export.write_onnx(NamedModel(convolutional), str(tmp_path / "m"), 18)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="PyTorch writes newer ones")
def test_an_opset_that_tf2onnx_does_not_know_is_refused(convolutional, tmp_path):
    pytest.importorskip("tf2onnx")
    with pytest.raises(NotSupportedError, match="opsets up to 18, and 19 was requested"):
        backend.current().export.write_onnx(NamedModel(convolutional), str(tmp_path / "m"), 19)


@writes_onnx
def test_an_array_that_stands_in_a_model_is_no_input(tmp_path):
    """tf2onnx takes what a function has captured for one."""
    offsets = np.linspace(0.0, 1.0, 300, dtype="float32")
    inputs = keras.Input((300,), name="x")
    model = keras.Model(inputs, inputs + keras.ops.convert_to_tensor(offsets))
    batch = np.ones((2, 300), "float32")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip(WRITERS[BACKEND])
    backend.current().export.write_onnx(NamedModel(model), str(tmp_path / "model.onnx"), 18)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (value,) = session.get_inputs()
    (outputs,) = session.run(None, {value.name: batch})
    np.testing.assert_allclose(outputs, batch + offsets, rtol=1e-6)
