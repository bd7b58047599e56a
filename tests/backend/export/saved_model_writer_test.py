import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.backend import current
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.export.saved_model_writer import (
    ServingSignatures,
    classify,
    regress,
    serialize_examples,
)
from keras_deepseek.backend.runtimes.saved_model import load_saved_model
from keras_deepseek.errors import (
    ExportError,
    InvalidInputError,
    MissingExtraError,
    NotSupportedError,
)


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
    current().export.write_saved_model(named, str(tmp_path), ServingSignatures())
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
        current().export.write_saved_model(model, str(tmp_path), ServingSignatures())


@pytest.fixture
def serialize():
    tf = pytest.importorskip("tensorflow")

    def make(rows):
        def feature(values):
            if values.dtype.kind == "f":
                return tf.train.Feature(float_list=tf.train.FloatList(value=values.ravel()))
            return tf.train.Feature(int64_list=tf.train.Int64List(value=values.ravel()))

        examples = [
            tf.train.Example(
                features=tf.train.Features(
                    feature={name: feature(values[index]) for name, values in rows.items()}
                )
            )
            for index in range(len(next(iter(rows.values()))))
        ]
        return tf.constant([example.SerializeToString() for example in examples])

    return make


IS_TENSORFLOW = keras.backend.backend() == "tensorflow"


@pytest.mark.skipif(not IS_TENSORFLOW, reason="TensorFlow alone writes them")
def test_examples_are_classified_and_regressed(tmp_path, serialize):
    import tensorflow as tf

    left_input, right_input = (
        keras.Input((2, 2), name="left"),
        keras.Input((3,), dtype="int32", name="right"),
    )
    both = keras.layers.Concatenate()(
        [keras.layers.Flatten()(left_input), keras.ops.cast(right_input, "float32")]
    )
    generator = np.random.default_rng(0)
    rows = {
        "left": generator.normal(size=(5, 2, 2)).astype("float32"),
        "right": generator.integers(0, 9, size=(5, 3)).astype("int32"),
    }
    for width, signatures in (
        (3, ServingSignatures(classes=("a", "b", "c"))),
        (1, ServingSignatures(regresses=True)),
    ):
        model = keras.Model(
            [left_input, right_input], keras.layers.Dense(width, activation="sigmoid")(both)
        )
        folder = tmp_path / str(width)
        current().export.write_saved_model(NamedModel(model), str(folder), signatures)
        expected = model.predict(rows, verbose=0)
        loaded = tf.saved_model.load(str(folder))
        assert "serving_default" in loaded.signatures
        if width == 1:
            outputs = loaded.signatures["serving_regress"](inputs=serialize(rows))["outputs"]
            np.testing.assert_allclose(outputs, expected[:, 0], atol=1e-6)
        else:
            outputs = loaded.signatures["serving_classify"](inputs=serialize(rows))
            np.testing.assert_allclose(outputs["scores"], expected, atol=1e-6)
            assert outputs["classes"].numpy().tolist() == [[b"a", b"b", b"c"]] * 5
        text = (folder / "saved_model.pb").read_bytes()
        assert (b"tensorflow/serving/regress" in text) == (width == 1)
        assert (b"tensorflow/serving/classify" in text) == (width == 3)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX has no operation for them")
def test_examples_are_read_by_tensorflow_alone(tmp_path):
    pytest.importorskip("tensorflow")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    with pytest.raises(NotSupportedError, match="written from TensorFlow"):
        current().export.write_saved_model(
            NamedModel(model), str(tmp_path), ServingSignatures(regresses=True)
        )


class Counting(keras.layers.Layer):
    """Counts how often it is called."""

    num_calls = 0

    def call(self, inputs):
        self.num_calls += 1
        return inputs + 1.0


@pytest.mark.skipif(not IS_TENSORFLOW, reason="TensorFlow alone traces it by itself")
def test_a_model_is_traced_once(tmp_path):
    inputs = keras.Input((4,), name="x")
    layer = Counting()
    named = NamedModel(keras.Model(inputs, layer(inputs)))
    layer.num_calls = 0
    current().export.write_saved_model(named, str(tmp_path), ServingSignatures())
    assert layer.num_calls == 1
    received = load_saved_model(tmp_path)({"x": np.ones((3, 4), "float32")})
    np.testing.assert_array_equal(received["output_0"], np.full((3, 4), 2.0))


@pytest.mark.skipif(not IS_TENSORFLOW, reason="the tables are TensorFlow's")
def test_a_table_is_written_with_the_model(tmp_path):
    inputs = keras.Input((3,), dtype="int64", name="x")
    lookup = keras.layers.IntegerLookup(vocabulary=[7, 5, 9])
    named = NamedModel(keras.Model(inputs, keras.layers.Embedding(4, 2)(lookup(inputs))))
    current().export.write_saved_model(named, str(tmp_path), ServingSignatures())
    x = np.array([[5, 9, 7], [1, 5, 5]], "int64")
    expected = keras.ops.convert_to_numpy(named({"x": x})["output_0"])
    np.testing.assert_array_equal(load_saved_model(tmp_path)({"x": x})["output_0"], expected)


@pytest.mark.skipif(not IS_TENSORFLOW, reason="on JAX it is Keras's own endpoint")
def test_a_loaded_model_has_the_endpoint_by_its_name(tmp_path):
    import tensorflow as tf

    left_input, right_input = keras.Input((2,), name="left"), keras.Input((2,), name="right")
    named = NamedModel(
        keras.Model([left_input, right_input], keras.layers.Add()([left_input, right_input]))
    )
    current().export.write_saved_model(named, str(tmp_path), ServingSignatures())
    loaded = tf.saved_model.load(str(tmp_path))
    batch = {"left": tf.ones((3, 2)), "right": 2 * tf.ones((3, 2))}
    (received,) = loaded.serving_default(batch).values()
    np.testing.assert_array_equal(received, np.full((3, 2), 3.0))


def test_it_is_true_where_there_is_one():
    assert not ServingSignatures()
    assert ServingSignatures(classes=())
    assert ServingSignatures(regresses=True)


def signature_of(sizes, *widths):
    outputs = tuple(
        TensorSpec(f"output_{index}", (None, width), "float32")
        for index, width in enumerate(widths)
    )
    return Signature((TensorSpec("input_0", (None, *sizes), "float32"),), outputs)


@pytest.mark.parametrize(
    ("signature", "signatures", "match"),
    [
        (signature_of((None, 3), 2), ServingSignatures(classes=("a", "b")), "fixed size.*input_0"),
        (
            signature_of((3,), 2),
            ServingSignatures(classes=("a", "b", "c")),
            r"shape \(any, 3\); received",
        ),
        (
            signature_of((3,), 2),
            ServingSignatures(regresses=True),
            r"For 1 value a row.*shape \(any, 1\)",
        ),
        (signature_of((3,), 1, 1), ServingSignatures(regresses=True), "one output"),
    ],
)
def test_a_model_that_does_not_fit_a_signature_is_refused(signature, signatures, match):
    with pytest.raises(InvalidInputError, match=match):
        signatures.check(signature)


def test_fitting_signatures_pass():
    ServingSignatures(classes=("a", "b")).check(signature_of((3,), 2))
    ServingSignatures(regresses=True).check(signature_of((3,), 1))
    ServingSignatures().check(signature_of((None,), 2, 3))


ROWS = {"x": np.array([[0.25, -2.0], [3.0, 4.0], [5.0, 6.0]], "float32")}


def loaded_with(**signatures):
    """Stands for a SavedModel: each signature gives the same arrays for whatever examples."""
    tf = pytest.importorskip("tensorflow")

    def always(outputs):
        def call(inputs):
            assert (inputs.dtype, len(inputs)) == (tf.string, 3)
            return {name: tf.constant(array) for name, array in outputs.items()}

        return call

    return SimpleNamespace(
        signatures={name: always(outputs) for name, outputs in signatures.items()}
    )


def classifying(classes, scores):
    return loaded_with(serving_classify={"classes": classes, "scores": scores})


def test_a_score_is_found_by_the_name_of_its_class():
    classes = [["b", "a"], ["a", "b"], ["b", "a"]]
    loaded = classifying(classes, [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    expected = [[2.0, 1.0], [3.0, 4.0], [6.0, 5.0]]
    np.testing.assert_array_equal(classify(loaded, ROWS, ["a", "b"]), expected)


def test_classes_without_names_are_numbers():
    loaded = classifying([["0", "1"]] * 3, [[1.0, 2.0]] * 3)
    np.testing.assert_array_equal(classify(loaded, ROWS, None), [[1.0, 2.0]] * 3)


@pytest.mark.parametrize(
    ("classes", "scores", "match"),
    [
        ([["a", "c"]] * 3, [[1.0, 2.0]] * 3, "does not name the class 'b' once in each row"),
        ([["a", "b"], ["a", "b"], ["a", "a"]], [[1.0, 2.0]] * 3, "the class 'a' once in each row"),
        ([["a", "b"]], [[1.0, 2.0]] * 3, r"classes of shape \(1, 2\) and scores of shape \(3, 2\)"),
        ([["a", "b", "c"]] * 3, [[1.0, 2.0, 3.0]] * 3, r"\(3, 3\); expected \(3, 2\)"),
    ],
)
def test_other_classes_are_an_error(classes, scores, match):
    with pytest.raises(ExportError, match=match):
        classify(classifying(classes, scores), ROWS, ["a", "b"])


def test_values_are_those_of_the_signature():
    loaded = loaded_with(serving_regress={"outputs": [1.0, 2.0, 3.0]})
    assert regress(loaded, ROWS).tolist() == [1.0, 2.0, 3.0]


def test_a_missing_signature_is_named():
    with pytest.raises(ExportError, match="no signature 'serving_regress'"):
        regress(loaded_with(), ROWS)


def test_examples_hold_each_dtype_row_by_row():
    tf = pytest.importorskip("tensorflow")
    rows = {
        "float": np.arange(8.0).reshape(2, 2, 2),
        "half": np.array([[1.5], [2.5]], "float16"),
        "brief": np.array([[1.5], [2.5]], tf.bfloat16.as_numpy_dtype),
        "count": np.array([3, -(2**62)], "int64"),
        "flag": np.array([[True], [False]]),
    }
    features = {
        name: tf.io.FixedLenFeature(
            array.shape[1:], tf.int64 if name in ("count", "flag") else tf.float32
        )
        for name, array in rows.items()
    }
    parsed = tf.io.parse_example(serialize_examples(rows), features)
    for name, array in rows.items():
        np.testing.assert_array_equal(parsed[name].numpy(), array.astype(parsed[name].dtype.name))
