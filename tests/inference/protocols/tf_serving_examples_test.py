import contextlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.artifacts import InvalidInputError, Signature, TensorSpec
from keras_deepseek.inference.protocols import tf_serving_examples
from keras_deepseek.inference.protocols.grpc_messages import parse_message
from tests.oracles.protocols import import_client

SIGNATURE = Signature(
    (
        TensorSpec("age", (None,), "float32"),
        TensorSpec("pixels", (None, 2, 2), "int32"),
        TensorSpec("word", (None, 1), "object"),
    ),
    (),
)
PIXELS = [1, 2, 3, 4]


def parse(content, signature=SIGNATURE):
    return tf_serving_examples.parse_examples(json.dumps(content).encode(), signature)


def test_each_input_takes_the_feature_of_its_name():
    inputs = parse(
        {
            "examples": [
                {"age": 3, "pixels": PIXELS, "word": "a", "unknown": 3},
                {"age": [4.5], "pixels": [5, 6, 7, 8], "word": [{"b64": "/w=="}]},
            ]
        }
    )
    assert {name: array.dtype.name for name, array in inputs.items()} == {
        "age": "float32",
        "pixels": "int32",
        "word": "object",
    }
    assert inputs["age"].tolist() == [3, 4.5]
    assert inputs["pixels"].tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert inputs["word"].tolist() == [[b"a"], [b"\xff"]]


def test_the_context_is_in_every_example_that_does_not_have_it_itself():
    inputs = parse(
        {
            "context": {"age": 1.5, "word": "c"},
            "examples": [{"pixels": PIXELS}, {"pixels": PIXELS, "age": 2.5}],
        }
    )
    assert inputs["age"].tolist() == [1.5, 2.5]
    assert inputs["word"].tolist() == [[b"c"], [b"c"]]


def test_one_axis_of_any_length_is_as_long_as_the_list():
    signature = Signature((TensorSpec("x", (None, None, 2), "float32"),), ())
    inputs = parse({"examples": [{"x": [1, 2, 3, 4]}, {"x": [5, 6, 7, 8]}]}, signature)
    assert inputs["x"].shape == (2, 2, 2)
    with pytest.raises(InvalidInputError, match=r"received \[2, 4\] values"):
        parse({"examples": [{"x": [1, 2, 3, 4]}, {"x": [5, 6]}]}, signature)
    with pytest.raises(InvalidInputError, match="several axes of any length"):
        parse(
            {"examples": [{"x": [1]}]},
            Signature((TensorSpec("x", (None, None, None), "int8"),), ()),
        )


def test_a_model_with_one_input_of_strings_takes_whole_examples():
    pytest.importorskip("google.protobuf", reason="protobuf is not installed")
    signature = Signature((TensorSpec("inputs", (None,), "object"),), ())
    inputs = parse(
        {
            "context": {"word": {"b64": "/w=="}},
            "examples": [{"age": 3, "size": [1.5, 2.0]}, {"age": [True]}],
        },
        signature,
    )
    examples = [parse_message("tensorflow.Example", data) for data in inputs["inputs"]]
    first, second = (example.features.feature for example in examples)
    assert first["word"].bytes_list.value == second["word"].bytes_list.value == [b"\xff"]
    assert (first["age"].int64_list.value, second["age"].int64_list.value) == ([3], [1])
    assert first["size"].float_list.value == [1.5, 2]
    for value, message in ((2**63, "int64 can't hold"), (1e39, "float32 can't hold")):
        with pytest.raises(InvalidInputError, match=message):
            parse({"examples": [{"age": value}]}, signature)
    # Where there is a feature of the input's own name, that is what it takes.
    assert parse({"examples": [{"inputs": "a"}]}, signature)["inputs"].tolist() == [b"a"]


def test_tensorflow_parses_the_whole_examples():
    tf = import_client("tensorflow")
    signature = Signature((TensorSpec("inputs", (None,), "object"),), ())
    content = {"examples": [{"a": [1.5, 2.0], "s": "x"}, {"a": [3.5, 4.0], "s": {"b64": "/w=="}}]}
    parsed = tf.io.parse_example(
        parse(content, signature)["inputs"],
        {"a": tf.io.FixedLenFeature([2], "float32"), "s": tf.io.FixedLenFeature([], "string")},
    )
    assert parsed["a"].numpy().tolist() == [[1.5, 2], [3.5, 4]]
    assert parsed["s"].numpy().tolist() == [b"x", b"\xff"]


def test_another_signature_is_refused():
    body = b'{"examples": [{"age": 1}], "signature_name": "other"}'
    with pytest.raises(InvalidInputError, match='"other" not found'):
        tf_serving_examples.parse_examples(body, SIGNATURE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "JSON object"),
        ({}, "'examples', a list of at least one"),
        ({"examples": []}, "'examples', a list of at least one"),
        ({"examples": {"age": 1}}, "'examples', a list of at least one"),
        ({"examples": [3]}, "must be an object of features"),
        ({"examples": [{}], "context": []}, "must be an object of features"),
        ({"examples": [{"age": 1}, {}]}, "Example 1 has no feature 'age'"),
        ({"examples": [{"age": [1, 2]}]}, r"Feature 'age': received \[2\] values"),
        ({"examples": [{"age": None}]}, "Feature 'age': expected strings"),
        ({"examples": [{"age": [[1]]}]}, "Feature 'age': expected strings"),
        ({"examples": [{"age": [1, 2.5]}]}, "of one kind"),
        ({"examples": [{"age": ["a", 1]}]}, "Feature 'age': expected a string"),
        ({"examples": [{"age": {"b64": "!"}}]}, "not valid base64"),
        (
            {"examples": [{"age": "x", "pixels": PIXELS, "word": "a"}]},
            "Input 'age': received text",
        ),
        ({"examples": [{"age": 1, "pixels": [0.5] * 4, "word": "a"}]}, "Input 'pixels'"),
    ],
)
def test_what_the_model_can_t_take_is_refused(content, message):
    with pytest.raises(InvalidInputError, match=message):
        parse(content)


SCORES = np.array([[0.25, 0.75], [0.5, 0.5]], "float32")
NAMES = np.array([[b"cat", b"dog"], [b"cat", b"dog"]], object)


@pytest.mark.parametrize(
    ("outputs", "first"),
    [
        ({"y": SCORES}, [("", 0.25), ("", 0.75)]),
        ({"scores": SCORES, "classes": NAMES}, [("cat", 0.25), ("dog", 0.75)]),
        ({"scores": SCORES, "other": SCORES}, [("", 0.25), ("", 0.75)]),
        ({"classes": NAMES}, [("cat", 0.0), ("dog", 0.0)]),
        ({"y": SCORES.astype("float16"), "n": np.array([1, 2])}, [("", 0.25), ("", 0.75)]),
    ],
)
def test_scores_and_labels_make_classes(outputs, first):
    results = tf_serving_examples.classify(outputs, 2)
    assert (len(results), results[0]) == (2, first)


@pytest.mark.parametrize(
    "outputs",
    [
        {},
        {"y": SCORES[:, 0]},
        {"y": SCORES[:1]},
        {"y": SCORES[None]},
        {"a": SCORES, "b": SCORES},
        {"y": SCORES.astype(int)},
        {"y": SCORES, "n": NAMES[:, :1]},
        {"y": np.float32(1)},
    ],
)
def test_a_model_that_can_t_classify_is_refused(outputs):
    outputs = {name: np.asarray(array) for name, array in outputs.items()}
    with pytest.raises(InvalidInputError, match="can't classify"):
        tf_serving_examples.classify(outputs, 2)


@pytest.mark.parametrize("array", [SCORES[:, 0], SCORES[:, :1]])
def test_one_number_for_each_example_is_a_regression(array):
    assert tf_serving_examples.regress({"y": array}, 2) == [0.25, 0.5]


@pytest.mark.parametrize(
    "outputs", [{"y": SCORES}, {"y": SCORES[:1, 0]}, {"y": np.array([1, 2])}, {}]
)
def test_a_model_that_can_t_regress_is_refused(outputs):
    with pytest.raises(InvalidInputError, match="can't regress"):
        tf_serving_examples.regress(outputs, 2)


def test_bfloat16_is_a_float():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert tf_serving_examples.regress({"y": np.array([1.5], ml_dtypes.bfloat16)}, 1) == [1.5]


def test_answers_are_worded_as_tf_serving_does():
    assert tf_serving_examples.encode_results([1.5, float("nan")]) == b'{"results":[1.5,NaN]}'
    classes = tf_serving_examples.classify({"y": SCORES[:1], "n": NAMES[:1]}, 1)
    assert (
        tf_serving_examples.encode_results(classes) == b'{"results":[[["cat",0.25],["dog",0.75]]]}'
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(
    st.lists(
        st.fixed_dictionaries({"age": json_values, "pixels": json_values, "word": json_values}),
        max_size=3,
    )
)
def test_whatever_json_holds_is_bound_or_refused_as_a_bad_input(examples):
    with contextlib.suppress(InvalidInputError):
        assert parse({"examples": examples})["pixels"].shape == (len(examples), 2, 2)
