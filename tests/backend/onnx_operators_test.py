"""What loses digits, or overflows, where the exporters write it, is right in ONNX."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend.named_model import NamedModel

WRITERS = {"tensorflow": "tf2onnx", "jax": "jax2onnx", "torch": "onnxscript"}


class Applied(keras.layers.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, inputs):
        return self.function(inputs)


def run_onnx(function, given, path, shape=None):
    """Returns what the ONNX file of a function of a tensor gives."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip(WRITERS[keras.backend.backend()])
    inputs = keras.Input(shape or given.shape[1:], dtype=str(given.dtype), name="x")
    model = NamedModel(keras.Model(inputs, Applied(function)(inputs)))
    backend.current().write_onnx(model, str(path / "model.onnx"), 18)
    (received,) = runtime.InferenceSession(path / "model.onnx").run(None, {"x": given})
    return received


FAR = np.array([[-1e30, -200, -100, -87, -60, -20, -17, -16.5, -3, -0.6, -0.4, -1e-3, -1e-7]])
FAR = np.concatenate([FAR, -FAR, FAR * 0], axis=1).astype("float32")
TINY = float(np.finfo("float32").tiny)
ENDS = np.array([[-np.inf, np.inf, np.nan]], "float32")


def log_sigmoid(x):
    return np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))


@pytest.mark.parametrize("given", [FAR, ENDS], ids=["far", "ends"])
def test_log_sigmoid(given, tmp_path):
    received = run_onnx(ops.log_sigmoid, given, tmp_path)
    expected = log_sigmoid(given.astype("float64"))
    np.testing.assert_allclose(received, expected, rtol=1e-6, atol=TINY)


@pytest.mark.parametrize("given", [FAR, ENDS], ids=["far", "ends"])
def test_expm1(given, tmp_path):
    given = np.minimum(given, 80) if given is FAR else given
    received = run_onnx(ops.expm1, given, tmp_path)
    np.testing.assert_allclose(received, np.expm1(given.astype("float64")), rtol=1e-6)


@pytest.mark.parametrize("given", [FAR, ENDS], ids=["far", "ends"])
def test_log1p(given, tmp_path):
    given = np.maximum(given, -1) if given is FAR else given
    received = run_onnx(ops.log1p, given, tmp_path)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.log1p(given.astype("float64"))
    np.testing.assert_allclose(received, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["logaddexp", "logaddexp2"])
def test_the_logarithm_of_a_sum_of_powers(name, tmp_path):
    pairs = [(100, 100), (-100, -100), (200, 199), (-1e30, 3), (-12, 0), (0.5, -0.25)]
    pairs += [(np.inf, np.inf), (-np.inf, -np.inf), (np.inf, -np.inf), (np.nan, 1)]
    given = np.array(pairs, "float32")
    received = run_onnx(lambda x: getattr(ops, name)(x[:, 0], x[:, 1]), given, tmp_path)
    with np.errstate(invalid="ignore"):
        expected = getattr(np, name)(*given.astype("float64").T)
    np.testing.assert_allclose(received, expected, rtol=1e-6)


@pytest.mark.parametrize("mean", [0, 50, 500, 3000])
def test_groups_with_a_large_mean_are_normalized(mean, tmp_path):
    given = np.random.default_rng(0).normal(size=(2, 20, 30, 6)).astype("float32")
    given += np.float32(mean)
    layer = keras.layers.GroupNormalization(3)
    received = run_onnx(layer, given, tmp_path, (None, None, 6))
    groups = given.astype("float64").reshape(2, 20, 30, 3, 2)
    axes = (1, 2, 4)
    spread = np.sqrt(groups.var(axes, keepdims=True) + layer.epsilon)
    expected = ((groups - groups.mean(axes, keepdims=True)) / spread).reshape(given.shape)
    # A mean of float32 is off by some of its last digits.
    np.testing.assert_allclose(received, expected, atol=1e-5 + 1e-6 * mean)


def test_no_class_below_zero_and_beyond_the_last(tmp_path):
    """ONNX counts what is below zero from the end."""
    given = np.array([[-1, 3], [4, 8], [0, 9 if keras.backend.backend() != "torch" else 1]])
    received = run_onnx(lambda x: ops.one_hot(x, 9), given.astype("int32"), tmp_path)
    np.testing.assert_array_equal(received, given[..., None] == np.arange(9))
