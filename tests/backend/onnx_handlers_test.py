"""What TensorFlow writes as operations that tf2onnx lacks comes out of onnxruntime the same."""

import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.backend.named_model import NamedModel

runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("tf2onnx")
pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow alone goes by tf2onnx"
)

GIVEN = np.array(
    [[-2.5, -0.0, 0.0, 1e-3], [0.0, -0.0, -1.0, -7.0], [3.0, 4.0, 4.0, 0.5]], "float32"
)


def export(function, path, opset=18):
    inputs = keras.Input((GIVEN.shape[1],), name="x")
    model = keras.Model(inputs, function(inputs))
    backend.current().write_onnx(NamedModel(model), str(path), opset)
    (outputs,) = runtime.InferenceSession(path).run(None, {"x": GIVEN})
    return outputs, keras.ops.convert_to_numpy(model(GIVEN))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: keras.ops.log1p(keras.ops.abs(x)),
        lambda x: keras.ops.gelu(x, approximate=False),
        lambda x: keras.ops.argmax(x, axis=-1),
        keras.ops.signbit,
    ],
    ids=["log1p", "gelu", "argmax", "signbit"],
)
def test_an_operation_computes_the_same(function, tmp_path):
    received, expected = export(function, tmp_path / "model.onnx")
    np.testing.assert_allclose(received, expected, atol=1e-6, rtol=1e-5)


def test_bits_that_are_more_than_a_sign_are_refused(tmp_path):
    def view(x):
        return keras.ops.cast(keras.ops.view(x, "int32"), "float32")

    with pytest.raises(Exception, match="Bitcast"):
        export(view, tmp_path / "model.onnx")
