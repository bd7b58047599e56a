from types import SimpleNamespace

import numpy as np
import pytest

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.backend.export.serving_signatures import (
    ServingSignatures,
    classify,
    regress,
    serialize_examples,
)
from keras_deepseek.errors import ExportError, InvalidInputError


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
def test_what_a_model_has_no_signature_for_is_refused(signature, signatures, match):
    with pytest.raises(InvalidInputError, match=match):
        signatures.check(signature)


def test_what_fits_passes():
    ServingSignatures(classes=("a", "b")).check(signature_of((3,), 2))
    ServingSignatures(regresses=True).check(signature_of((3,), 1))
    ServingSignatures().check(signature_of((None,), 2, 3))


tf = pytest.importorskip("tensorflow")

ROWS = {"x": np.array([[0.25, -2.0], [3.0, 4.0], [5.0, 6.0]], "float32")}


def loaded_with(**signatures):
    """Stands for a SavedModel: each signature gives the same arrays for whatever examples."""

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
