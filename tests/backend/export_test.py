import importlib.util
import os
import sys

import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.export.saved_model_writer import ServingSignatures
from keras_deepseek.backend.keras_private.fixes import temporary_moments
from keras_deepseek.errors import MissingExtraError, NotSupportedError

WRITERS = {"tensorflow": "tf2onnx", "jax": "jax2onnx", "torch": "onnxscript"}
"""The package by which each backend writes ONNX."""


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="PyTorch writes none")
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


def test_an_onnx_file_has_as_many_inputs_and_outputs_as_the_model(model, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip(WRITERS[keras.backend.backend()])
    is_recurrent = any(isinstance(layer, keras.layers.RNN) for layer in model.layers)
    if is_recurrent and keras.backend.backend() == "torch":
        pytest.skip("Keras's loop over a free length can't be traced by torch.export")
    named = NamedModel(model)
    backend.current().export.write_onnx(named, str(tmp_path / "model.onnx"), 18)
    proto = onnx.load(tmp_path / "model.onnx")
    assert len(proto.graph.input) == len(named.signature.inputs)
    assert len(proto.graph.output) == len(named.signature.outputs)
    assert [opset.version for opset in proto.opset_import if not opset.domain] == [18]


def test_inputs_stand_in_the_models_order(tmp_path):
    """TensorFlow sorts the keys of a dict."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip(WRITERS[keras.backend.backend()])
    last, first = keras.Input((3,), name="z"), keras.Input((5,), name="a")
    named = NamedModel(keras.Model([last, first], keras.layers.Concatenate()([last, first])))
    backend.current().export.write_onnx(named, str(tmp_path / "model.onnx"), 18)
    inputs = onnx.load(tmp_path / "model.onnx").graph.input
    assert [value.type.tensor_type.shape.dim[1].dim_value for value in inputs] == [3, 5]


def test_a_writer_that_is_not_installed_names_its_extra(convolutional, tmp_path, monkeypatch):
    writer = WRITERS[keras.backend.backend()]
    monkeypatch.setitem(sys.modules, writer, None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    with pytest.raises(MissingExtraError, match=rf"`{writer}` .*keras_deepseek\[onnx"):
        backend.current().export.write_onnx(
            NamedModel(convolutional), str(tmp_path / "model.onnx"), 18
        )


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="the others write it")
def test_a_backend_that_can_not_write_says_so(convolutional, tmp_path):
    with pytest.raises(NotSupportedError, match="can't write a SavedModel itself"):
        backend.current().export.write_saved_model(
            NamedModel(convolutional), str(tmp_path), ServingSignatures()
        )


def run_onnx(model, path, batch):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip(WRITERS[keras.backend.backend()])
    backend.current().export.write_onnx(NamedModel(model), str(path), 18)
    session = runtime.InferenceSession(path)
    (value,) = session.get_inputs()
    return session.run(None, {value.name: batch})


def test_an_array_that_stands_in_a_model_is_no_input(tmp_path):
    """tf2onnx takes what a function has captured for one."""
    offsets = np.linspace(0.0, 1.0, 300, dtype="float32")
    inputs = keras.Input((300,), name="x")
    model = keras.Model(inputs, inputs + keras.ops.convert_to_tensor(offsets))
    batch = np.ones((2, 300), "float32")
    (outputs,) = run_onnx(model, tmp_path / "model.onnx", batch)
    np.testing.assert_allclose(outputs, batch + offsets, rtol=1e-6)


def test_a_grouped_convolution_is_written(tmp_path):
    """Keras compiles it on TensorFlow by itself, as a function that tf2onnx does not open."""
    inputs = keras.Input((6, 6, 4), name="x")
    model = keras.Model(inputs, keras.layers.Conv2D(8, 3, groups=2)(inputs))
    batch = np.random.default_rng(0).normal(size=(2, 6, 6, 4)).astype("float32")
    (outputs,) = run_onnx(model, tmp_path / "model.onnx", batch)
    np.testing.assert_allclose(outputs, model.predict(batch, verbose=0), atol=1e-5)


@pytest.mark.parametrize("side", [2, 4])
def test_maps_of_one_pixel_are_normalized(side, tmp_path):
    """tf2onnx puts the features of a squared map of 1x1 on another axis."""
    inputs = keras.Input((side, side, 4), name="x")
    maps = keras.layers.Conv2D(8, 2, strides=2)(inputs)
    model = keras.Model(inputs, keras.layers.LayerNormalization()(maps))
    batch = np.random.default_rng(0).normal(size=(3, side, side, 4)).astype("float32")
    (outputs,) = run_onnx(model, tmp_path / "model.onnx", batch)
    np.testing.assert_allclose(outputs, model.predict(batch, verbose=0), atol=1e-5)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_maps_are_pooled(padding, tmp_path):
    """jax2onnx pools over the batch as well, which onnxruntime does not run."""
    inputs = keras.Input((7, 8, 3), name="x")
    model = keras.Model(inputs, keras.layers.MaxPooling2D((3, 2), 2, padding=padding)(inputs))
    batch = np.random.default_rng(0).normal(size=(2, 7, 8, 3)).astype("float32")
    (outputs,) = run_onnx(model, tmp_path / "model.onnx", batch)
    np.testing.assert_array_equal(outputs, model.predict(batch, verbose=0))


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_nan_is_in_the_last_bin(dtype, tmp_path):
    inputs = keras.Input((6,), name="x", dtype=dtype)
    model = keras.Model(inputs, keras.layers.Discretization([-1.0, 0.5, 2.0])(inputs))
    batch = np.array([[-2, -1, 0, 1, 2, 3], [-1.5, 0.5, np.nan, -np.inf, np.inf, 2]])
    batch = batch.astype("float32") if dtype == "float32" else batch[:1].astype(dtype)
    (outputs,) = run_onnx(model, tmp_path / "model.onnx", batch)
    np.testing.assert_array_equal(outputs, model.predict(batch, verbose=0))


class Chosen(keras.layers.Layer):
    def call(self, inputs):
        return keras.ops.take(inputs, np.array([3, 0, 1]), axis=1)


def test_a_choice_of_several_is_written(tmp_path):
    """PyTorch leaves an axis that it can't squeeze, and its exporter squeezes it."""
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, Chosen()(inputs))
    batch = np.arange(8, dtype="float32").reshape(2, 4)
    (outputs,) = run_onnx(model, tmp_path / "model.onnx", batch)
    np.testing.assert_array_equal(outputs, batch[:, [3, 0, 1]])


def test_a_masked_recurrent_layer_of_a_fixed_length_is_written(tmp_path):
    """On PyTorch, Keras's loop over time makes a list of the batch."""
    inputs = keras.Input((6, 3), name="x")
    layer = keras.layers.GRU(4, return_sequences=True)
    model = keras.Model(inputs, layer(keras.layers.Masking()(inputs)))
    batch = np.random.default_rng(0).normal(size=(3, 6, 3)).astype("float32")
    batch[0, 3:] = batch[1, :2] = 0
    (outputs,) = run_onnx(model, tmp_path / "model.onnx", batch)
    np.testing.assert_allclose(outputs, model.predict(batch, verbose=0), atol=1e-5)
    assert not layer.unroll


class Places(keras.layers.Layer):
    def call(self, inputs):
        positions = keras.ops.arange(keras.ops.shape(inputs)[1], dtype="float32")
        return inputs + keras.ops.expand_dims(positions, -1)


def test_places_of_a_free_length_are_written(tmp_path):
    """jax2onnx makes a sentinel of a free size in `arange`."""
    inputs = keras.Input((None, 2), name="x")
    model = keras.Model(inputs, Places()(inputs))
    batch = np.zeros((2, 5, 2), "float32")
    (outputs,) = run_onnx(model, tmp_path / "model.onnx", batch)
    np.testing.assert_array_equal(outputs[1, :, 1], np.arange(5))


class PlacesOfAFixedLength(keras.layers.Layer):
    def call(self, inputs):
        return inputs + keras.ops.arange(inputs.shape[1], dtype="float32")


def test_places_of_a_fixed_length_are_written(tmp_path):
    """What jax2onnx puts for `arange` takes no `None`."""
    inputs = keras.Input((5,), name="x")
    model = keras.Model(inputs, PlacesOfAFixedLength()(inputs))
    (outputs,) = run_onnx(model, tmp_path / "model.onnx", np.zeros((2, 5), "float32"))
    np.testing.assert_array_equal(outputs, [range(5)] * 2)


class AllButTheFirst(keras.layers.Layer):
    def call(self, inputs):
        return inputs[:, 1:] * 2.0


def test_a_name_may_have_a_hyphen(tmp_path):
    """JAX reads the name of an axis as a formula."""
    inputs = keras.Input((None, 2), name="left-right")
    model = keras.Model(inputs, AllButTheFirst()(inputs))
    batch = np.random.default_rng(0).normal(size=(3, 7, 2)).astype("float32")
    (outputs,) = run_onnx(model, tmp_path / "model.onnx", batch)
    np.testing.assert_array_equal(outputs, batch[:, 1:] * 2)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf2onnx's own ways")
def test_an_optimizer_of_tf2onnx_that_fails_is_passed_over(model, tmp_path, monkeypatch):
    optimizer = pytest.importorskip("tf2onnx.optimizer")
    import onnx

    class Failing:
        def optimize(self, graph, iteration):
            raise ValueError("no")

    monkeypatch.setitem(optimizer._optimizers, "loop_optimizer", Failing)
    optimizers = list(optimizer._optimizers)
    backend.current().export.write_onnx(NamedModel(model), str(tmp_path / "model.onnx"), 25)
    proto = onnx.load(tmp_path / "model.onnx")
    assert [opset.version for opset in proto.opset_import if not opset.domain] == [18]
    assert list(optimizer._optimizers) == optimizers
    assert "TF2ONNX_CATCH_ERRORS" not in os.environ


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX has the one function")
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("num_groups", [4, 2])
@pytest.mark.parametrize("num_masks", [None, 1, 4])
def test_attention_in_parts_is_that_of_jax(num_masks, num_groups, is_causal):
    import jax

    from keras_deepseek.backend.jax.export import _attend

    generator = np.random.default_rng(0)
    query = generator.normal(size=(2, 5, 4, 8)).astype("float32")
    key, value = generator.normal(size=(2, 2, 7, num_groups, 8)).astype("float32")
    options = {"is_causal": is_causal, "scale": 0.3}
    if num_masks:
        options["mask"] = generator.random((2, num_masks, 5, 7)) < 0.5
        options["mask"][0, :, 1] = False  # A row with no key.
        options["bias"] = generator.normal(size=(1, num_masks, 5, 7)).astype("float32")
    expected = jax.nn.dot_product_attention(query, key, value, **options)
    received = _attend(*map(jax.numpy.asarray, (query, key, value)), **options)
    np.testing.assert_allclose(received, expected, atol=1e-5)


def test_a_constant_is_added_to_a_bias(tmp_path):
    """TensorFlow, folding constants, takes the one for the other; `predict` ends of it."""
    inputs = keras.Input((8, 7), name="x")
    layer = keras.layers.Conv1DTranspose(6, 3, bias_initializer="normal")
    constant = np.random.default_rng(1).normal(size=(1, 10, 1)).astype("float32")
    model = keras.Model(inputs, keras.ops.add(constant, layer(inputs)))
    batch = np.random.default_rng(0).normal(size=(2, 8, 7)).astype("float32")
    (outputs,) = run_onnx(model, tmp_path / "model.onnx", batch)
    np.testing.assert_allclose(outputs, keras.ops.convert_to_numpy(model(batch)), atol=1e-5)


class Applied(keras.layers.Layer):
    def __init__(self, function, dtype=None):
        super().__init__(dtype=dtype)
        self.function = function

    def call(self, inputs):
        return self.function(inputs)


def run_function(function, batch, path, shape=None):
    inputs = keras.Input(shape or batch.shape[1:], dtype=str(batch.dtype), name="x")
    model = keras.Model(inputs, Applied(function)(inputs))
    (received,) = run_onnx(model, path / "model.onnx", batch)
    return received


FAR = np.array([[-1e30, -200, -100, -87, -60, -20, -17, -16.5, -3, -0.6, -0.4, -1e-3, -1e-7]])
FAR = np.concatenate([FAR, -FAR, FAR * 0], axis=1).astype("float32")
TINY = float(np.finfo("float32").tiny)
ENDS = np.array([[-np.inf, np.inf, np.nan]], "float32")


def log_sigmoid(x):
    return np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))


@pytest.mark.parametrize("numbers", [FAR, ENDS], ids=["far", "ends"])
def test_log_sigmoid(numbers, tmp_path):
    received = run_function(keras.ops.log_sigmoid, numbers, tmp_path)
    expected = log_sigmoid(numbers.astype("float64"))
    np.testing.assert_allclose(received, expected, rtol=1e-6, atol=TINY)


@pytest.mark.parametrize("numbers", [FAR, ENDS], ids=["far", "ends"])
def test_expm1(numbers, tmp_path):
    numbers = np.minimum(numbers, 80) if numbers is FAR else numbers
    received = run_function(keras.ops.expm1, numbers, tmp_path)
    np.testing.assert_allclose(received, np.expm1(numbers.astype("float64")), rtol=1e-6)


@pytest.mark.parametrize("numbers", [FAR, ENDS], ids=["far", "ends"])
def test_log1p(numbers, tmp_path):
    numbers = np.maximum(numbers, -1) if numbers is FAR else numbers
    received = run_function(keras.ops.log1p, numbers, tmp_path)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.log1p(numbers.astype("float64"))
    np.testing.assert_allclose(received, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["logaddexp", "logaddexp2"])
def test_the_logarithm_of_a_sum_of_powers(name, tmp_path):
    pairs = [(100, 100), (-100, -100), (200, 199), (-1e30, 3), (-12, 0), (0.5, -0.25)]
    pairs += [(np.inf, np.inf), (-np.inf, -np.inf), (np.inf, -np.inf), (np.nan, 1)]
    numbers = np.array(pairs, "float32")
    received = run_function(lambda x: getattr(keras.ops, name)(x[:, 0], x[:, 1]), numbers, tmp_path)
    with np.errstate(invalid="ignore"):
        expected = getattr(np, name)(*numbers.astype("float64").T)
    np.testing.assert_allclose(received, expected, rtol=1e-6)


@pytest.mark.parametrize("mean", [0, 50, 500, 3000])
def test_groups_with_a_large_mean_are_normalized(mean, tmp_path):
    batch = np.random.default_rng(0).normal(size=(2, 20, 30, 6)).astype("float32")
    batch += np.float32(mean)
    layer = keras.layers.GroupNormalization(3)
    received = run_function(layer, batch, tmp_path, (None, None, 6))
    groups = batch.astype("float64").reshape(2, 20, 30, 3, 2)
    axes = (1, 2, 4)
    spread = np.sqrt(groups.var(axes, keepdims=True) + layer.epsilon)
    expected = ((groups - groups.mean(axes, keepdims=True)) / spread).reshape(batch.shape)
    # A mean of float32 is off by some of its last digits.
    np.testing.assert_allclose(received, expected, atol=1e-5 + 1e-6 * mean)


def test_no_class_below_zero_and_beyond_the_last(tmp_path):
    """ONNX counts what is below zero from the end."""
    classes = np.array([[-1, 3], [4, 8], [0, 9 if keras.backend.backend() != "torch" else 1]])
    received = run_function(lambda x: keras.ops.one_hot(x, 9), classes.astype("int32"), tmp_path)
    np.testing.assert_array_equal(received, classes[..., None] == np.arange(9))


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="these are Keras's on PyTorch")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axes", [(1,), (0, -1), [1, 2]])
def test_moments_are_those_of_keras(axes, keepdims, dtype):
    from keras_deepseek.backend.torch import export

    x = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(dtype)
    expected = keras.ops.moments(x, axes, keepdims=keepdims)
    with temporary_moments(export._moments):
        received = keras.ops.moments(x, axes, keepdims=keepdims)
    for ours, theirs in zip(received, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        tolerance = 1e-3 if dtype == "float16" else 1e-5
        np.testing.assert_allclose(ours.cpu(), theirs.cpu(), atol=tolerance)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="these are Keras's on PyTorch")
def test_a_variance_beside_a_large_mean_is_kept():
    """Canary: Keras's own is looked up where it is replaced, and loses it."""
    from keras_deepseek.backend.torch import export

    x = np.random.default_rng(0).normal(size=(2, 1000)).astype("float32") + np.float32(3000)
    expected = x.astype("float64").var(axis=1)
    original = keras.ops.moments(x, (1,))[1].cpu().numpy()
    with temporary_moments(export._moments):
        received = keras.ops.moments(x, (1,))[1].cpu().numpy()
    after = keras.ops.moments(x, (1,))[1].cpu().numpy()
    np.testing.assert_allclose(received, expected, rtol=1e-5)
    assert np.abs(original - expected).max() > 1e-2
    np.testing.assert_array_equal(after, original)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="these are Keras's on PyTorch")
def test_moments_across_replicas_are_refused_as_by_keras():
    from keras_deepseek.backend.torch import export

    with (
        temporary_moments(export._moments),
        pytest.raises(NotImplementedError, match="synchronized"),
    ):
        keras.ops.moments(np.ones((2, 3), "float32"), (1,), synchronized=True)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="jax2onnx's own ways")
def test_replaced_functions_are_restored():
    import jax

    from keras_deepseek.backend.jax import export

    system = pytest.importorskip("jax2onnx.plugins.plugin_system")
    system.import_all_plugins()
    originals = dict(system.PLUGIN_REGISTRY), jax.nn.one_hot, jax.nn.log_sigmoid
    with export._primitives_in_parts(), export._functions_in_parts():
        assert system.PLUGIN_REGISTRY["log1p"] is not originals[0]["log1p"]
        assert jax.nn.log_sigmoid is export._log_sigmoid
    assert originals == (dict(system.PLUGIN_REGISTRY), jax.nn.one_hot, jax.nn.log_sigmoid)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="PyTorch has no one of integers")
def test_log_sigmoid_of_integers(tmp_path):
    numbers = np.array([[-30, 0, 3]], "int32")
    received = run_function(keras.ops.log_sigmoid, numbers, tmp_path)
    np.testing.assert_allclose(received, log_sigmoid(numbers), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_more_classes_than_a_type_has_numbers(dtype, tmp_path):
    classes = np.array([[1, 100], [0, 7]], dtype)
    received = run_function(lambda x: keras.ops.one_hot(x, 300), classes, tmp_path)
    np.testing.assert_array_equal(received.argmax(-1), classes)


@pytest.mark.parametrize("name", ["expm1", "log1p", "log_sigmoid"])
def test_numbers_have_the_type_of_a_model_in_float16(name, tmp_path):
    numbers = np.array([[1e-3, 0.3, 5]], "float16")
    function = getattr(keras.ops, name)
    inputs = keras.Input((3,), dtype="float16", name="x")
    model = keras.Model(inputs, Applied(function, "float16")(inputs))
    (received,) = run_onnx(model, tmp_path / "model.onnx", numbers)
    expected = keras.ops.convert_to_numpy(function(numbers.astype("float32")))
    np.testing.assert_allclose(received, expected, rtol=5e-3)
